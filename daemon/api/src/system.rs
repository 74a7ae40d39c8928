//! `/_ping`, `/version`, `/info`, `/auth`.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use skiff_core::AuthConfig;
use skiff_core::container::ListOptions;
use skiff_core::filters::Filters;
use skiff_core::system::{API_VERSION, Component, MIN_API_VERSION, SystemFacts};

use crate::error::{Answer, ApiError};
use crate::extract::JsonBody;
use crate::{App, answer, time};

/// Docker Hub, where logins without a server go.
const INDEX_SERVER: &str = "https://index.docker.io/v1/";

/// Every client's first request.
pub(crate) async fn ping(method: Method) -> Response {
    let body = if method == Method::HEAD { "" } else { "OK" };
    let headers = [
        // There is no BuildKit here yet: `1` keeps the CLI from speaking it to us, and its classic
        // `POST /build` gets an answer that says so.
        (
            HeaderName::from_static("builder-version"),
            HeaderValue::from_static("1"),
        ),
        (
            HeaderName::from_static("swarm"),
            HeaderValue::from_static("inactive"),
        ),
        (
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, no-store, must-revalidate"),
        ),
        (header::PRAGMA, HeaderValue::from_static("no-cache")),
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        ),
    ];
    (headers, body).into_response()
}

/// `docker version`.
pub(crate) async fn version(State(app): State<App>) -> Response {
    answer::ok(&version_of(&app.engine.facts))
}

fn version_of(facts: &SystemFacts) -> Value {
    let arch = go_arch(&facts.architecture);
    let engine = json!({
        "Name": "Engine",
        "Version": facts.version,
        "Details": {
            "ApiVersion": API_VERSION,
            "Arch": arch,
            "BuildTime": facts.build_time,
            "Experimental": facts.experimental.to_string(),
            "GitCommit": facts.git_commit,
            "GoVersion": facts.compiler,
            "KernelVersion": facts.kernel_version,
            "MinAPIVersion": MIN_API_VERSION,
            "Os": "linux",
        },
    });
    let others = facts.components.iter().map(
        |Component {
             name,
             version,
             details,
         }| {
            let details: Map<String, Value> = details.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            json!({"Name": name, "Version": version, "Details": details})
        },
    );
    let mut version = json!({
        "Platform": {"Name": "skiff"},
        "Components": std::iter::once(engine).chain(others).collect::<Vec<_>>(),
        "Version": facts.version,
        "ApiVersion": API_VERSION,
        "MinAPIVersion": MIN_API_VERSION,
        "GitCommit": facts.git_commit,
        "GoVersion": facts.compiler,
        "Os": "linux",
        "Arch": arch,
        "KernelVersion": facts.kernel_version,
        "BuildTime": facts.build_time,
    });
    if facts.experimental {
        version["Experimental"] = json!(true);
    }
    version
}

/// uname's machine name in Go's (and the image specification's) words.
fn go_arch(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        "i386" | "i686" => "386",
        other => other,
    }
}

/// `docker info`.
pub(crate) async fn info(State(app): State<App>) -> Answer {
    let facts = &*app.engine.facts;
    let containers = app.engine.containers.list(&ListOptions {
        all: true,
        ..ListOptions::default()
    })?;
    let count = |word: &str| {
        containers
            .iter()
            .filter(|view| view.state.status().word == word)
            .count()
    };
    let (running, paused) = (count("running"), count("paused"));
    let mut info = json!({
        "ID": facts.id,
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": containers.len() - running - paused,
        "Images": app.engine.images.list(true, &Filters::default())?.len(),
    });
    if let Some(info) = info.as_object_mut() {
        info.extend(storage_and_network(&app));
        info.extend(machine(facts));
        info.extend(registries(facts));
        info.extend(runtimes(&app));
    }
    Ok(answer::ok(&info))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn storage_and_network(app: &App) -> Map<String, Value> {
    let facts = &*app.engine.facts;
    let mut drivers: Vec<String> = app
        .engine
        .networks
        .list()
        .into_iter()
        .map(|network| network.driver)
        .collect();
    drivers.sort_unstable();
    drivers.dedup();
    object(json!({
        "Driver": facts.storage_driver,
        "DriverStatus": facts.storage_status,
        "DockerRootDir": facts.data_root,
        "Plugins": {
            "Volume": [],
            "Network": drivers,
            "Authorization": null,
            "Log": ["json-file", "none"],
        },
    }))
}

/// The machine, and which resources can be limited on it: none until containers get control groups. (Forwarding is
/// that of the containers' own network namespace, where the network layer turns it on.)
fn machine(facts: &SystemFacts) -> Map<String, Value> {
    object(json!({
        "MemoryLimit": false,
        "SwapLimit": false,
        "CpuCfsPeriod": false,
        "CpuCfsQuota": false,
        "CPUShares": false,
        "CPUSet": false,
        "PidsLimit": false,
        "OomKillDisable": false,
        "IPv4Forwarding": true,
        "Debug": facts.debug,
        "SystemTime": time::rfc3339(Some(Timestamp::now())),
        "LoggingDriver": "json-file",
        "CgroupDriver": facts.cgroup_driver,
        "CgroupVersion": facts.cgroup_version,
        "KernelVersion": facts.kernel_version,
        "OperatingSystem": facts.operating_system,
        "OSVersion": facts.os_version,
        "OSType": "linux",
        "Architecture": facts.architecture,
        "NCPU": facts.cpus,
        "MemTotal": facts.memory,
        "Name": facts.hostname,
        "Labels": facts.labels,
        "ExperimentalBuild": facts.experimental,
        "ServerVersion": facts.version,
        "HttpProxy": facts.proxies[0],
        "HttpsProxy": facts.proxies[1],
        "NoProxy": facts.proxies[2],
        "GenericResources": null,
    }))
}

fn registries(facts: &SystemFacts) -> Map<String, Value> {
    let (ranges, hosts): (Vec<&String>, Vec<&String>) = facts
        .insecure_registries
        .iter()
        .partition(|entry| entry.contains('/'));
    // Loopback registries may always speak plain HTTP.
    let mut cidrs = vec!["127.0.0.0/8", "::1/128"];
    cidrs.extend(ranges.into_iter().map(String::as_str));
    let hub =
        json!({"Name": "docker.io", "Mirrors": facts.registry_mirrors, "Secure": true, "Official": true});
    let mut indexes = Map::from_iter([("docker.io".to_owned(), hub)]);
    for host in hosts {
        indexes.insert(
            host.clone(),
            json!({"Name": host, "Mirrors": [], "Secure": false, "Official": false}),
        );
    }
    object(json!({
        "IndexServerAddress": INDEX_SERVER,
        "RegistryConfig": {
            "AllowNondistributableArtifactsCIDRs": null,
            "AllowNondistributableArtifactsHostnames": null,
            "InsecureRegistryCIDRs": cidrs,
            "IndexConfigs": indexes,
            "Mirrors": facts.registry_mirrors,
        },
    }))
}

fn runtimes(app: &App) -> Map<String, Value> {
    let facts = &*app.engine.facts;
    let runtimes: Map<String, Value> = app
        .engine
        .runtime
        .runtimes()
        .into_iter()
        .map(|(name, path)| (name, json!({"path": path})))
        .collect();
    let no_commit = json!({"ID": "", "Expected": ""});
    object(json!({
        "Runtimes": runtimes,
        "DefaultRuntime": app.engine.runtime.default_runtime(),
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": false,
            "Error": "",
            "RemoteManagers": null,
        },
        "LiveRestoreEnabled": facts.live_restore,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": no_commit,
        "RuncCommit": no_commit,
        "InitCommit": no_commit,
        "SecurityOptions": facts.security_options,
        "CDISpecDirs": null,
        "Warnings": facts.warnings,
    }))
}

/// `docker login`.
pub(crate) async fn auth(State(app): State<App>, JsonBody(body): JsonBody<Value>) -> Answer {
    let auth = AuthConfig::from_json(body.to_string().as_bytes())
        .map_err(|_| ApiError::invalid("invalid JSON: not an auth configuration"))?;
    let server = if auth.server_address.is_empty() {
        INDEX_SERVER
    } else {
        &auth.server_address
    };
    let (status, token) = app.engine.images.login(server, auth.credentials).await?;
    Ok(answer::ok(
        &json!({"Status": status, "IdentityToken": token.unwrap_or_default()}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_have_go_s_names() {
        assert_eq!(
            ["x86_64", "aarch64", "riscv64"].map(go_arch),
            ["amd64", "arm64", "riscv64"]
        );
    }
}
