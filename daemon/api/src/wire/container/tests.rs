//! The JSON of constructed containers.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::container::state::{Failure, State};
use skiff_core::container::view::Record;
use skiff_core::network::{Endpoint, Sandbox};
use skiff_core::runtime::NetworkNamespace;

use super::*;

const NOW: &str = "2026-11-21T12:00:00Z";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn running() -> State {
    State::Running {
        pid: 42,
        started_at: at("2026-11-21T11:59:55.5Z"),
    }
}

fn exited(code: i32) -> State {
    State::Exited {
        code,
        started_at: at("2026-11-21T11:50:00Z"),
        finished_at: at("2026-11-21T11:58:00Z"),
        oom_killed: false,
        last_failure: None,
        cleaned: true,
    }
}

fn view(state: State) -> ContainerView {
    let config = ContainerConfig {
        image: "busybox".into(),
        exposed_ports: Some([("80/tcp".to_owned(), json!({}))].into()),
        labels: Some([("a".to_owned(), "1".to_owned())].into()),
        ..ContainerConfig::default()
    };
    let host_config = HostConfig {
        network_mode: "bridge".into(),
        ..HostConfig::default()
    };
    let record = Record {
        version: 1,
        id: "ab".repeat(32),
        name: "web".into(),
        created: at("2026-11-21T10:00:00.25Z"),
        image: "sha256:cc".into(),
        image_top_layer: None,
        os: "linux".into(),
        driver: "vfs".into(),
        path: "sh".into(),
        args: vec!["-c".into(), "exit 3".into()],
        config,
        host_config,
        networking: serde_json::from_value(json!({"EndpointsConfig": {"bridge": {"Aliases": ["db"]}}}))
            .unwrap(),
        mounts: vec![MountPoint {
            kind: "bind".into(),
            source: "/srv".into(),
            destination: "/data".into(),
            mode: "ro".into(),
            rw: false,
            propagation: "rprivate".into(),
        }],
        directory: "/root/containers/x".into(),
    };
    ContainerView {
        record: Arc::new(record),
        state,
        restart_count: 0,
        sandbox: None,
        exits: 0,
        last_exit: 0,
    }
}

fn connected(mut view: ContainerView) -> ContainerView {
    view.sandbox = Some(Sandbox {
        namespace: NetworkNamespace::Host,
        key: Some("/run/netns/x".into()),
        resolv_conf: String::new(),
        endpoints: vec![Endpoint {
            network: "bridge".into(),
            network_id: "n1".into(),
            endpoint_id: "e1".into(),
            address: Some([172, 17, 0, 2].into()),
            prefix_len: 16,
            gateway: Some([172, 17, 0, 1].into()),
            mac_address: "02:42:ac:11:00:02".into(),
            host_interface: "veth1".into(),
        }],
    });
    view
}

fn summary(state: State) -> Value {
    serde_json::to_value(Summary::new(&view(state), at(NOW))).unwrap()
}

#[test]
fn status_texts_are_docker_s() {
    let text = |state| summary(state)["Status"].as_str().unwrap().to_owned();
    assert_eq!(text(State::Created { last_failure: None }), "Created");
    assert_eq!(text(running()), "Up 4 seconds");
    assert_eq!(text(exited(0)), "Exited (0) 2 minutes ago");
    assert_eq!(text(exited(137)), "Exited (137) 2 minutes ago");
    assert_eq!(
        text(State::Removing {
            previous: Box::new(exited(0))
        }),
        "Removal In Progress"
    );
    assert_eq!(
        text(State::Dead {
            reason: "disk".into()
        }),
        "Dead"
    );
    assert_eq!(
        text(State::Starting {
            previous: Box::new(exited(0))
        }),
        "Exited (0) 2 minutes ago"
    );
}

#[test]
fn a_running_container_in_a_list() {
    let view = connected(view(running()));
    let value = serde_json::to_value(Summary::new(&view, at(NOW))).unwrap();
    assert_eq!(value["Names"], json!(["/web"]));
    assert_eq!(value["Command"], "sh -c 'exit 3'");
    assert_eq!(value["Created"], 1_795_255_200);
    assert_eq!(value["Ports"], json!([{"PrivatePort": 80, "Type": "tcp"}]));
    assert_eq!(
        (&value["State"], &value["ImageID"]),
        (&json!("running"), &json!("sha256:cc"))
    );
    assert_eq!(value["HostConfig"], json!({"NetworkMode": "bridge"}));
    assert_eq!(value["Labels"], json!({"a": "1"}));
    let bridge = &value["NetworkSettings"]["Networks"]["bridge"];
    assert_eq!(
        (&bridge["IPAddress"], &bridge["Aliases"]),
        (&json!("172.17.0.2"), &json!(["db"]))
    );
    assert_eq!(
        value["Mounts"],
        json!([{"Type": "bind", "Source": "/srv", "Destination": "/data", "Mode": "ro", "RW": false,
                "Propagation": "rprivate"}])
    );
    assert!(value.get("SizeRw").is_none());
}

#[test]
fn a_stopped_container_has_its_networks_but_no_addresses_and_ports() {
    let value = summary(exited(0));
    assert_eq!(value["Ports"], json!([]));
    assert_eq!(value["NetworkSettings"]["Networks"]["bridge"]["IPAddress"], "");
}

#[test]
fn sizes_when_asked_for() {
    let view = view(exited(0));
    let mut summary = Summary::new(&view, at(NOW));
    summary.set_size(Some(ContainerSize { rw: 5, root_fs: 10 }));
    let value = serde_json::to_value(summary).unwrap();
    assert_eq!((&value["SizeRw"], &value["SizeRootFs"]), (&json!(5), &json!(10)));
}

#[test]
fn inspection_of_a_running_container() {
    let view = connected(view(running()));
    let value = serde_json::to_value(Inspect::new(&view, None, &[])).unwrap();
    assert_eq!(
        value["State"],
        json!({
            "Status": "running", "Running": true, "Paused": false, "Restarting": false, "OOMKilled": false,
            "Dead": false, "Pid": 42, "ExitCode": 0, "Error": "", "StartedAt": "2026-11-21T11:59:55.5Z",
            "FinishedAt": "0001-01-01T00:00:00Z",
        })
    );
    assert_eq!(
        (&value["Name"], &value["Created"]),
        (&json!("/web"), &json!("2026-11-21T10:00:00.25Z"))
    );
    assert_eq!(
        value["LogPath"],
        format!("/root/containers/x/{}-json.log", "ab".repeat(32))
    );
    assert_eq!(value["HostsPath"], "/root/containers/x/hosts");
    assert_eq!(value["GraphDriver"]["Name"], "vfs");
    assert_eq!(value["HostConfig"]["NetworkMode"], "bridge");
    assert_eq!(value["Config"]["Image"], "busybox");
    let network = &value["NetworkSettings"];
    assert_eq!(network["IPAddress"], "172.17.0.2");
    assert_eq!(network["Gateway"], "172.17.0.1");
    assert_eq!(network["IPPrefixLen"], 16);
    assert_eq!(network["SandboxKey"], "/run/netns/x");
    assert_eq!(network["Ports"], json!({"80/tcp": null}));
    assert_eq!(network["Networks"]["bridge"]["NetworkID"], "n1");
    assert!(value.get("SizeRw").is_none() && value["ExecIDs"].is_null());
}

#[test]
fn inspection_of_a_failed_start_shows_why() {
    let failure = Failure {
        code: 127,
        message: "executable file not found in $PATH".into(),
    };
    let view = view(State::Created {
        last_failure: Some(failure),
    });
    let value = serde_json::to_value(Inspect::new(
        &view,
        Some(ContainerSize { rw: 1, root_fs: 2 }),
        &[],
    ))
    .unwrap();
    assert_eq!(value["State"]["ExitCode"], 127);
    assert_eq!(value["State"]["Error"], "executable file not found in $PATH");
    assert_eq!((&value["SizeRw"], &value["SizeRootFs"]), (&json!(1), &json!(2)));
    assert_eq!(value["NetworkSettings"]["SandboxID"], "");
    assert_eq!(value["NetworkSettings"]["Ports"], json!({}));
}

#[test]
fn a_container_in_another_s_network_has_none_of_its_own() {
    let mut shared = view(exited(0));
    let mut record = (*shared.record).clone();
    record.host_config.network_mode = "container:abc".into();
    record.networking = serde_json::from_value(json!({})).unwrap();
    record.host_config.log_config.driver = "none".into();
    shared.record = Arc::new(record);
    let value = serde_json::to_value(Inspect::new(&shared, None, &[])).unwrap();
    assert_eq!(value["NetworkSettings"]["Networks"], json!({}));
    assert_eq!(value["LogPath"], "");
}
