//! What a container may not do. Each denial is seen to happen, and where it can be switched off, seen not to happen then:
//! a test that only sees the denial could be looking at something else that failed.

use crate::harness::{Engine, on_both_drivers, registry};

/// A field of /proc/self/status inside a container.
fn status_field(engine: &Engine, options: &[&str], field: &str) -> String {
    let script = format!("awk '/^{field}:/ {{ print $2 }}' /proc/self/status");
    engine.busybox(options, &["sh", "-c", &script]).ok()
}

on_both_drivers! {
    fn the_seccomp_profile_is_enforced(engine) {
        // A new user namespace takes no privilege, only the system call, and the default profile denies it.
        let denied = engine.busybox(&[], &["unshare", "-U", "true"]).run();
        assert!(!denied.status.success() && denied.stderr.contains("Operation not permitted"), "{denied}");
        engine.busybox(&["--security-opt", "seccomp=unconfined"], &["unshare", "-U", "true"]).run().code(0);
        assert_eq!(status_field(engine, &[], "Seccomp"), "2", "filtering");
        assert_eq!(status_field(engine, &["--security-opt", "seccomp=unconfined"], "Seccomp"), "0");
    }
}

#[test]
fn a_profile_of_one_s_own_replaces_the_default() {
    let engine = Engine::with_busybox("overlay2");
    let profile = engine.path().join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
    std::fs::write(&profile, text).unwrap();
    let option = format!("seccomp={}", profile.display());
    let done = engine
        .busybox(&["--security-opt", &option], &["mkdir", "/x"])
        .run()
        .code(1);
    assert!(
        done.stderr.contains("No space left on device"),
        "the profile's own errno: {done}"
    );
    engine
        .busybox(&["--security-opt", &option], &["unshare", "-U", "true"])
        .run()
        .code(0);
}

#[test]
fn capabilities_are_docker_s_default_set_and_can_be_changed() {
    let engine = Engine::with_busybox("overlay2");
    let caps = |options: &[&str], field| status_field(&engine, options, field);
    assert_eq!(caps(&[], "CapEff"), "00000000a80425fb");
    assert_eq!(caps(&[], "CapBnd"), "00000000a80425fb");
    assert_eq!(caps(&["--cap-drop", "ALL"], "CapEff"), "0000000000000000");
    assert_eq!(
        caps(&["--cap-drop", "ALL", "--cap-add", "CHOWN"], "CapEff"),
        "0000000000000001"
    );
    assert_eq!(caps(&["--cap-add", "NET_ADMIN"], "CapEff"), "00000000a80435fb");
    assert_eq!(caps(&["--cap-drop", "cap_chown"], "CapEff"), "00000000a80425fa");
    assert_eq!(
        caps(&["-u", "guest"], "CapEff"),
        "0000000000000000",
        "not for an ordinary user"
    );
    assert_eq!(caps(&["-u", "guest"], "CapBnd"), "00000000a80425fb");
    engine
        .busybox(&["--cap-drop", "CHOWN"], &["chown", "1", "/tmp"])
        .run()
        .code(1)
        .says("Operation not permitted");
    engine.busybox(&[], &["chown", "1", "/tmp"]).run().code(0);
    engine
        .busybox(&["--cap-add", "NOSUCH"], &["true"])
        .run()
        .code(125)
        .says("NOSUCH");
}

#[test]
fn no_new_privileges_can_be_asked_for() {
    let engine = Engine::with_busybox("overlay2");
    assert_eq!(
        status_field(&engine, &["--security-opt", "no-new-privileges"], "NoNewPrivs"),
        "1"
    );
    assert_eq!(status_field(&engine, &[], "NoNewPrivs"), "0");
    engine
        .busybox(&["--security-opt", "nosuch=1"], &["true"])
        .run()
        .code(125)
        .says("nosuch");
}

#[test]
fn the_kernel_s_sensitive_files_are_covered() {
    let engine = Engine::with_busybox("overlay2");
    engine
        .busybox(&[], &["sh", "-c", "echo 1 >/proc/sys/kernel/panic"])
        .run()
        .code(1)
        .says("Read-only file system");
    // Kernels differ in which of these they have.
    let script = "for p in /proc/sysrq-trigger /proc/bus /proc/fs /proc/irq; do \
                  [ ! -e $p ] || grep \" $p \" /proc/mounts | grep -q ' ro,' || echo $p; done";
    assert_eq!(
        engine.busybox(&[], &["sh", "-c", script]).ok(),
        "",
        "each is a read-only mount"
    );
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        let size = engine
            .busybox(&[], &["sh", "-c", &format!("[ ! -e {path} ] || wc -c <{path}")])
            .ok();
        assert!(size.is_empty() || size == "0", "{path} is masked: {size}");
    }
    engine
        .busybox(
            &[],
            &["sh", "-c", "mount | grep -q ' /sys .*ro' && ! touch /sys/x"],
        )
        .run()
        .code(0);
    engine
        .busybox(&[], &["mount", "-t", "tmpfs", "none", "/mnt"])
        .run()
        .fails();
}

#[test]
fn a_container_sees_its_own_processes_and_host_name_only() {
    let engine = Engine::with_busybox("overlay2");
    assert_eq!(
        engine
            .busybox(&[], &["sh", "-c", "echo $$; set -- /proc/[0-9]*; echo $#"])
            .ok(),
        "1\n1"
    );
    engine.busybox(&[], &["hostname", "changed"]).run().fails();
    let devices = engine
        .busybox(&[], &["sh", "-c", "cd /dev; ls | grep -v ^core$"])
        .ok(); // a link to the masked /proc/kcore
    let expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(devices.split_whitespace().collect::<Vec<_>>().join(" "), expected);
    engine
        .busybox(
            &[],
            &[
                "sh",
                "-c",
                "echo x >/dev/null && head -c 4 /dev/urandom | wc -c | grep -q 4",
            ],
        )
        .run()
        .code(0);
    let ulimit = engine
        .busybox(
            &["--ulimit", "nofile=123:456"],
            &["sh", "-c", "ulimit -Sn; ulimit -Hn"],
        )
        .ok();
    assert_eq!(ulimit, "123\n456");
}

#[test]
fn root_inside_is_nobody_special_outside() {
    let engine = Engine::with_busybox("overlay2");
    let dir = engine.shared_dir("owned");
    let volume = format!("{}:/mnt", dir.display());
    engine
        .busybox(
            &["-v", &volume],
            &["sh", "-c", "touch /mnt/root; mkdir -m 777 /mnt/d"],
        )
        .run()
        .code(0);
    engine
        .busybox(&["-v", &volume, "-u", "guest"], &["touch", "/mnt/d/guest"])
        .run()
        .code(0);
    if Engine::own() {
        use std::os::unix::fs::MetadataExt as _;
        let owner = |name: &str| std::fs::metadata(dir.join(name)).unwrap().uid();
        assert_eq!(
            owner("root"),
            engine.owner().uid,
            "container root is the daemon's user"
        );
        let subuid = std::fs::read_to_string("/etc/subuid").unwrap();
        let prefix = format!("{}:", engine.owner().name);
        let first: u32 = subuid
            .lines()
            .find_map(|l| l.strip_prefix(&prefix)?.split(':').next()?.parse().ok())
            .unwrap();
        assert_eq!(
            owner("d/guest"),
            first + 404,
            "container id n is subordinate id first + n - 1"
        );
    }
    engine
        .docker([
            "run",
            "--rm",
            "-v",
            "/:/host",
            &registry().busybox(),
            "cat",
            "/host/etc/shadow",
        ])
        .run()
        .code(1)
        .says("Permission denied");
}
