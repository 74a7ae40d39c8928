//! Gets a scenario into its namespaces, and gives it a root filesystem and a runtime.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use skiff_core::runtime::{
    AttachStreams, LaunchSpec, LogTarget, MountKind, MountSpec, NetworkNamespace, ProcessSpec, Runtime,
    SeccompProfile, StdStream, TaskExit, TaskIo,
};
use skiff_runtime::{RuntimeConfig, ShimRuntime};

use crate::Scenario;

/// Names the scenario to the process inside.
pub(crate) const INSIDE: &str = "SKIFF_TEST_SCENARIO";
/// The scenario's folder, made outside.
const FOLDER: &str = "SKIFF_TEST_FOLDER";
const USER: &str = "skiff-runtime";
/// Scenarios whose names begin so run in the machine's user namespace.
pub(crate) const AS_ROOT: &str = "as_root";

/// Lists or runs the scenarios the command line asks for; with `--ignored`, the measurements.
pub(crate) fn run_all(scenarios: &[Scenario], measurements: &[Scenario]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let all = if has("--ignored") { measurements } else { scenarios };
    if has("--list") {
        all.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|f| {
                if has("--exact") {
                    *f == name
                } else {
                    name.contains(f.as_str())
                }
            })
    };
    if let Err(missing) = prerequisites() {
        println!("skipped: all scenarios: {missing}");
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, _) in all.iter().filter(|(name, _)| wanted(name)) {
        let passed = run_one(name);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    println!("{failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn prerequisites() -> Result<(), String> {
    for program in ["/bin/busybox", "/usr/bin/unshare", "/usr/bin/newuidmap"] {
        if !Path::new(program).exists() {
            return Err(format!("{program} is not installed"));
        }
    }
    if rustix::process::geteuid().is_root() {
        let known = Command::new("id")
            .arg(USER)
            .output()
            .is_ok_and(|output| output.status.success());
        if !known
            && !Command::new("useradd")
                .args(["-m", USER])
                .status()
                .is_ok_and(|status| status.success())
        {
            return Err(format!("cannot add the user {USER}"));
        }
    }
    Ok(())
}

/// Runs a scenario in namespaces of its own.
fn run_one(name: &str) -> bool {
    let folder = tempfile::Builder::new()
        .prefix("skiff-runtime-")
        .tempdir()
        .unwrap();
    // Other users must be able to execute it, which the build's folder may not allow.
    let program = folder.path().join("containers-test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let root = rustix::process::geteuid().is_root();
    let mut command = Command::new(if root && !name.starts_with(AS_ROOT) {
        "setpriv"
    } else {
        "unshare"
    });
    let id = |flag: &str| {
        let output = Command::new("id").args([flag, USER]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let _lock;
    if name.starts_with(AS_ROOT) {
        if !root {
            println!("skipped: {name}: it needs root");
            return true;
        }
        // Their control groups are named by the container alone, and removing one kills who is in it: one at a time.
        _lock = fs::File::create(std::env::temp_dir().join("skiff-runtime-as-root.lock")).unwrap();
        _lock.lock().unwrap();
    } else {
        if root {
            command.args([format!("--reuid={}", id("-u")), format!("--regid={}", id("-g"))]);
            command.args(["--init-groups", "unshare"]);
        }
        command.args(["--user", "--map-root-user", "--map-auto", "--cgroup"]);
    }
    let status = command
        .args(["--mount", "--net", "--fork", "--kill-child"])
        .arg(&program)
        .env(INSIDE, name)
        .env(FOLDER, folder.path())
        .current_dir("/")
        .status();
    let passed = status.unwrap().success();
    // Files of the container's users are not the test user's.
    let kept = folder.keep();
    let _ = Command::new("rm").arg("-rf").arg(kept).status();
    passed
}

/// What a scenario works with.
pub(crate) struct Lab {
    pub(crate) folder: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) exec_root: PathBuf,
    rootless: bool,
    tokio: tokio::runtime::Runtime,
}

impl Lab {
    /// Prepares the inside.
    pub(crate) fn new() -> Self {
        skiff_sys::ns::receive_mounts_only().unwrap();
        let rootless = !std::env::var(INSIDE).unwrap().starts_with(AS_ROOT);
        if rootless {
            skiff_sys::ns::mount_own_cgroup_tree().unwrap();
        }
        let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
        let rootfs = folder.join("rootfs");
        make_rootfs(&rootfs);
        let exec_root = folder.join("run");
        fs::create_dir(&exec_root).unwrap();
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self {
            folder,
            rootfs,
            exec_root,
            rootless,
            tokio,
        }
    }

    /// Runs the asynchronous part; a scenario that hangs is a failure.
    pub(crate) fn block<T>(&self, work: impl Future<Output = T>) -> T {
        self.tokio.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), work)
                .await
                .expect("it hangs")
        })
    }

    pub(crate) fn config(&self) -> RuntimeConfig {
        RuntimeConfig {
            exec_root: self.exec_root.clone(),
            shim_command: vec![self.folder.join("containers-test").into(), OsString::from("shim")],
            init_program: self.folder.join("containers-test"),
            keeper_netns: None,
            rootless: self.rootless,
            runtimes: [("crun".to_owned(), PathBuf::from("/usr/bin/crun"))].into(),
            default_runtime: String::new(),
        }
    }

    pub(crate) fn runtime(&self) -> ShimRuntime {
        ShimRuntime::new(self.config()).unwrap()
    }

    /// A container that runs `args`, without terminal or input.
    pub(crate) fn spec(&self, id: &str, args: &[&str]) -> LaunchSpec {
        LaunchSpec {
            id: id.to_owned(),
            rootfs: self.rootfs.clone(),
            runtime: None,
            process: ProcessSpec {
                args: args.iter().map(|&arg| arg.to_owned()).collect(),
                env: vec!["PATH=/usr/local/bin:/usr/bin:/bin:/sbin".to_owned()],
                cwd: "/".to_owned(),
                user: String::new(),
                additional_groups: Vec::new(),
                tty: false,
                open_stdin: false,
                stdin_once: false,
                console_size: None,
            },
            hostname: Some("box".to_owned()),
            domainname: String::new(),
            mounts: Vec::new(),
            readonly_rootfs: false,
            network: NetworkNamespace::Host,
            host_pid: false,
            host_ipc: false,
            shm_size: 64 << 20,
            privileged: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            seccomp: SeccompProfile::Builtin,
            no_new_privileges: false,
            masked_paths: None,
            readonly_paths: None,
            ulimits: Vec::new(),
            sysctls: Vec::new(),
            devices: Vec::new(),
            oom_score_adj: 0,
            init: false,
            log: LogTarget::JsonFile {
                path: self.log_path(id),
                max_size: None,
                max_files: 1,
            },
            annotations: Vec::new(),
        }
    }

    pub(crate) fn log_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    /// A shell script in a container.
    pub(crate) fn script(&self, id: &str, script: &str) -> LaunchSpec {
        self.spec(id, &["/bin/sh", "-c", script])
    }

    /// Runs a container to its end: what it wrote (both streams) and how it ended.
    pub(crate) async fn run(&self, runtime: &ShimRuntime, spec: &LaunchSpec) -> (String, TaskExit) {
        runtime
            .create(spec)
            .await
            .unwrap_or_else(|failure| panic!("create: {:?}", failure.error));
        let io = runtime.attach(&spec.id, OUTPUT).await.unwrap();
        runtime
            .start(&spec.id)
            .await
            .unwrap_or_else(|failure| panic!("start: {:?}", failure.error));
        let output = collect(io).await;
        let exit = runtime.wait(&spec.id).await.unwrap();
        runtime.delete(&spec.id).await.unwrap();
        (output, exit)
    }

    /// As [`Lab::run`], for a script; only the output, and the exit code must be 0.
    pub(crate) async fn output_of(&self, spec: &LaunchSpec) -> String {
        let (output, exit) = self.run(&self.runtime(), spec).await;
        assert_eq!(exit.code, 0, "{output}");
        output
    }
}

/// Both output streams.
pub(crate) const OUTPUT: AttachStreams = AttachStreams {
    stdin: false,
    stdout: true,
    stderr: true,
};
/// All streams.
pub(crate) const ALL_STREAMS: AttachStreams = AttachStreams {
    stdin: true,
    stdout: true,
    stderr: true,
};

/// Reads output to its end.
pub(crate) async fn collect(mut io: TaskIo) -> String {
    let mut bytes = Vec::new();
    while let Some(chunk) = io.output.recv().await {
        assert!(matches!(chunk.stream, StdStream::Stdout | StdStream::Stderr));
        bytes.extend_from_slice(&chunk.bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads output until it contains `text`.
pub(crate) async fn read_until(io: &mut TaskIo, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let chunk = io
            .output
            .recv()
            .await
            .unwrap_or_else(|| panic!("the end, instead of {text:?}, after {seen:?}"));
        seen.push_str(&String::from_utf8_lossy(&chunk.bytes));
    }
    seen
}

/// A bind mount.
pub(crate) fn bind(source: impl Into<PathBuf>, target: &str, read_only: bool) -> MountSpec {
    let kind = MountKind::Bind {
        source: source.into(),
        propagation: "rprivate".to_owned(),
        recursive: true,
    };
    MountSpec {
        target: target.to_owned(),
        kind,
        read_only,
    }
}

/// The host's programs, e.g. perl, with which a scenario makes system calls that busybox has no applet for.
pub(crate) fn host_programs(spec: &mut LaunchSpec) {
    for folder in ["/usr", "/lib", "/lib64"] {
        let source = fs::canonicalize(folder).unwrap();
        spec.mounts.push(bind(source, folder, true));
    }
}

fn make_rootfs(rootfs: &Path) {
    for folder in [
        "bin", "etc", "tmp", "proc", "sys", "dev", "root", "usr", "lib", "lib64", "sbin",
    ] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        let _ = symlink("busybox", rootfs.join("bin").join(applet));
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv/web:/bin/sh\n",
    )
    .unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nwww:x:34:\nadm:x:4:web\n").unwrap();
    fs::write(rootfs.join("bin/data"), "not a program\n").unwrap();
    fs::write(rootfs.join("bin/garbage"), "\x7fgarbage\n").unwrap();
    fs::set_permissions(rootfs.join("bin/garbage"), fs::Permissions::from_mode(0o755)).unwrap();
}
