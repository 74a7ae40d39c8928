//! What a container may not do: capabilities, system calls, hidden paths, limits.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use skiff_core::config::Ulimit;
use skiff_core::runtime::{NetworkNamespace, Runtime, SeccompProfile};

use crate::Scenario;
use crate::harness::{Lab, host_programs};

pub(crate) const ALL: &[Scenario] = &[
    ("capabilities", capabilities),
    ("seccomp_denies", seccomp_denies),
    ("seccomp_is_off_when_unconfined", seccomp_is_off_when_unconfined),
    ("seccomp_custom_profile", seccomp_custom_profile),
    ("masked_and_read_only_paths", masked_and_read_only_paths),
    ("limits_and_kernel_parameters", limits_and_kernel_parameters),
    ("namespaces", namespaces),
    ("privileged", privileged),
    ("devices", devices),
    ("as_root_with_control_groups", as_root_with_control_groups),
    ("as_root_devices", devices),
    ("as_root_capabilities", capabilities),
    ("as_root_seccomp_denies", seccomp_denies),
    ("as_root_privileged", privileged),
];

fn capabilities(lab: Lab) {
    lab.block(async {
        let script = "grep -E 'Cap(Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status | tr -s '\\t\\n' ' '";
        let set = |permitted: &str, bounding: &str, nnp: u8| {
            format!("CapPrm: {permitted} CapEff: {permitted} CapBnd: {bounding} CapAmb: 0000000000000000 NoNewPrivs: {nnp} ")
        };
        let default = "00000000a80425fb";
        let none = "0000000000000000";
        assert_eq!(lab.output_of(&lab.script("a", script)).await, set(default, default, 0));
        let mut spec = lab.script("a", script);
        spec.process.user = "web".to_owned();
        assert_eq!(lab.output_of(&spec).await, set(none, default, 0));
        let mut spec = lab.script("a", script);
        spec.cap_drop = vec!["ALL".to_owned()];
        spec.cap_add = vec!["CAP_NET_ADMIN".to_owned()];
        spec.no_new_privileges = true;
        assert_eq!(lab.output_of(&spec).await, set("0000000000001000", "0000000000001000", 1));
        spec.cap_add = vec!["FLY".to_owned()];
        assert!(lab.runtime().create(&spec).await.unwrap_err().error.to_string().contains("unknown capability"));
    });
}

/// Makes system calls by number with perl (the numbers are those of `seccomp::syscalls`) and prints the error numbers.
fn perl(lab: &Lab, calls: &[&str]) -> skiff_core::runtime::LaunchSpec {
    let body: String = calls
        .iter()
        .map(|call| format!("$! = 0; my $r = syscall({call}); print $r == -1 ? $!+0 : 'ok', \"\\n\"; "))
        .collect();
    let mut spec = lab.spec("a", &["/usr/bin/perl", "-e", &body.replace("my $r", "$r")]);
    host_programs(&mut spec);
    spec
}

/// x86_64: keyctl, add_key, unshare(CLONE_NEWNS), clone3, mount, socket(AF_ALG), the same with a high bit set, socket(AF_VSOCK), bpf,
/// personality(READ_IMPLIES_EXEC), io_uring_setup, a number no kernel has, socket(AF_INET), personality(query).
#[cfg(target_arch = "x86_64")]
const CALLS: &[&str] = &[
    "250, 0, 0, 0, 0, 0",
    "248, 0, 0, 0, 0, 0",
    "272, 0x20000",
    "435, 0, 0",
    "165, 0, 0, 0, 0, 0",
    "41, 38, 5, 0",
    "41, 0x100000026, 5, 0",
    "41, 40, 1, 0",
    "321, 0, 0, 0",
    "135, 0x400000",
    "425, 1, 0",
    "9999",
    "41, 2, 1, 0",
    "135, 0xffffffff",
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS: &[&str] = &[];

const EPERM: &str = "1";
const ENOSYS: &str = "38";

fn seccomp_denies(lab: Lab) {
    if CALLS.is_empty() {
        return;
    }
    let mut expected = vec![EPERM; CALLS.len()];
    expected[3] = ENOSYS; // clone3: the C library falls back
    expected[11] = ENOSYS;
    expected[12] = "ok";
    expected[13] = "ok";
    lab.block(async {
        let mut spec = perl(&lab, CALLS);
        for (no_new_privileges, user) in [(false, ""), (true, ""), (false, "web"), (true, "web")] {
            spec.no_new_privileges = no_new_privileges;
            spec.process.user = user.to_owned();
            let output = lab.output_of(&spec).await;
            assert_eq!(output.lines().collect::<Vec<_>>(), expected, "no-new-privileges {no_new_privileges}, user {user:?}");
        }
        let output = lab.output_of(&lab.script("b", "grep Seccomp: /proc/self/status; unshare -m true 2>&1; mount -t tmpfs x /tmp 2>&1 | tail -1; true")).await;
        assert!(output.starts_with("Seccomp:\t2\nunshare: unshare(0x20000): Operation not permitted\nmount: "), "{output}");
        // The capability brings the calls along.
        let mut spec = lab.script("c", "unshare -m true && mount -t tmpfs x /tmp && echo mounted");
        spec.cap_add = vec!["SYS_ADMIN".to_owned()];
        assert_eq!(lab.output_of(&spec).await, "mounted\n");
    });
}

fn seccomp_is_off_when_unconfined(lab: Lab) {
    lab.block(async {
        let mut spec = perl(&lab, CALLS);
        spec.seccomp = SeccompProfile::Unconfined;
        let output = lab.output_of(&spec).await;
        let lines: Vec<_> = output.lines().collect();
        if !CALLS.is_empty() {
            assert_ne!(lines[0], EPERM, "keyctl");
            assert_ne!(lines[3], ENOSYS, "clone3");
            assert_eq!(lines[9], "ok", "personality");
        }
        let mut spec = lab.script("b", "grep Seccomp: /proc/self/status");
        spec.seccomp = SeccompProfile::Unconfined;
        assert_eq!(lab.output_of(&spec).await, "Seccomp:\t0\n");
    });
}

fn seccomp_custom_profile(lab: Lab) {
    lab.block(async {
        let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28}]}"#;
        let mut spec = lab.script("a", "mkdir /tmp/x 2>&1; touch /tmp/y && echo fine");
        for no_new_privileges in [false, true] {
            spec.seccomp = SeccompProfile::Custom(profile.to_owned());
            spec.no_new_privileges = no_new_privileges;
            assert_eq!(lab.output_of(&spec).await, "mkdir: can't create directory '/tmp/x': No space left on device\nfine\n");
        }
        spec.seccomp = SeccompProfile::Custom("{".to_owned());
        let failure = lab.runtime().create(&spec).await.unwrap_err();
        assert!(failure.error.to_string().contains("seccomp profile"), "{}", failure.error);
    });
}

fn masked_and_read_only_paths(lab: Lab) {
    lab.block(async {
        let script = "cat /proc/timer_list /proc/keys | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | grep -c .; \
                      for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/kernel/uevent_seqnum; do echo x 2>/dev/null > $f || echo refused; done";
        assert_eq!(lab.output_of(&lab.script("a", script)).await, "0\n0\nrefused\nrefused\nrefused\n");
        let mut spec = lab.script("b", "head -c 1 /proc/timer_list >/dev/null && cat /etc/passwd | wc -c; echo x 2>/dev/null > /etc/new || echo refused");
        spec.masked_paths = Some(vec!["/etc/passwd".to_owned()]);
        spec.readonly_paths = Some(vec!["/etc".to_owned()]);
        let output = lab.output_of(&spec).await;
        assert!(output.ends_with("refused\n"), "{output}");
    });
}

fn limits_and_kernel_parameters(lab: Lab) {
    lab.block(async {
        let mut spec = lab.script("a", "ulimit -n; ulimit -c; cat /proc/sys/kernel/msgmax /proc/self/oom_score_adj; df -m /dev/shm | awk 'NR==2{print $2}'");
        let limit = |name: &str, soft, hard| Ulimit { name: name.to_owned(), soft, hard };
        spec.ulimits = vec![limit("nofile", 77, 99), limit("core", 0, 0), limit("memlock", -1, -1)];
        spec.sysctls = vec![("kernel.msgmax".to_owned(), "4096".to_owned())];
        spec.oom_score_adj = 321;
        spec.shm_size = 3 << 20;
        assert_eq!(lab.output_of(&spec).await, "77\n0\n4096\n321\n3\n");
        // Cannot be had without privileges on the machine: cut, not refused.
        spec = lab.script("b", "cat /proc/self/oom_score_adj");
        spec.oom_score_adj = -1000;
        lab.output_of(&spec).await;
        spec.ulimits = vec![limit("speed", 1, 1)];
        assert!(lab.runtime().create(&spec).await.unwrap_err().error.to_string().contains("invalid ulimit type: speed"));
    });
}

/// A network namespace of its own, held by a sleeping process.
struct Network(Child);

impl Network {
    fn new() -> Self {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "1000"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(format!("/proc/{}/ns/net", child.id())).is_ok_and(|link| link == own) {
            std::thread::yield_now();
        }
        Self(child)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.0.id()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn namespaces(lab: Lab) {
    let network = Network::new();
    lab.block(async {
        let script = "echo $$; for n in net ipc uts pid mnt cgroup user; do readlink /proc/self/ns/$n; done; ls /sys/class/net | tr '\\n' ' '; hostname";
        let own: Vec<_> =
            ["net", "ipc", "uts", "pid", "mnt", "cgroup", "user"].map(|n| std::fs::read_link(format!("/proc/self/ns/{n}")).unwrap()).to_vec();
        let mut spec = lab.script("a", script);
        spec.network = NetworkNamespace::Path(network.path());
        let output = lab.output_of(&spec).await;
        let lines: Vec<_> = output.lines().collect();
        assert_eq!(lines[0], "1");
        assert_eq!(lines[1], std::fs::read_link(network.path()).unwrap().to_str().unwrap());
        for (index, own) in own.iter().enumerate() {
            let same = lines[index + 1] == own.to_str().unwrap();
            assert_eq!(same, index == 6, "{output}");
        }
        assert_eq!(lines[8], "lo box");
        let mut spec = lab.script("b", script);
        spec.host_pid = true;
        spec.host_ipc = true;
        spec.hostname = None;
        let output = lab.output_of(&spec).await;
        let lines: Vec<_> = output.lines().collect();
        assert_ne!(lines[0], "1");
        for index in [0, 1, 2, 3, 6] {
            assert_eq!(lines[index + 1], own[index].to_str().unwrap(), "{output}");
        }
    });
}

fn privileged(lab: Lab) {
    let network = Network::new();
    lab.block(async {
        let mut spec = lab.script("a", "grep -E 'CapEff|Seccomp:' /proc/self/status | tr -s '\\t\\n' ' '; mount -t tmpfs x /tmp && echo mounted; test -c /dev/null && echo null");
        spec.privileged = true;
        spec.network = NetworkNamespace::Path(network.path());
        let output = lab.output_of(&spec).await;
        // All that there are: on some machines even root lacks a few.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let all = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        assert_eq!(output, format!("CapEff: {all} Seccomp: 0 mounted\nnull\n"));
    });
}

fn devices(lab: Lab) {
    lab.block(async {
        let mut spec = lab.script("a", "test -c /dev/other && head -c 2 /dev/other | wc -c; echo hello > /dev/null && head -c 3 /dev/urandom | wc -c; test -w /dev/tty && echo tty");
        spec.devices = vec![("/dev/zero".into(), "/dev/other".into(), "rwm".to_owned())];
        assert_eq!(lab.output_of(&spec).await, "2\n3\ntty\n");
    });
}

/// As the machine's root: control groups are made, and removed with the container.
fn as_root_with_control_groups(lab: Lab) {
    let network = Network::new();
    let runtime = lab.runtime();
    let id = format!("skiff-test-{}", std::process::id());
    lab.block(async {
        let mut spec = lab.script(&id, "cat /proc/self/uid_map | tr -s ' '; echo hello; exit 4");
        spec.network = NetworkNamespace::Path(network.path());
        runtime
            .create(&spec)
            .await
            .unwrap_or_else(|failure| panic!("{:?}", failure.error));
        let groups = || -> Vec<PathBuf> {
            let hierarchies = std::fs::read_dir("/sys/fs/cgroup")
                .unwrap()
                .flatten()
                .map(|entry| entry.path());
            let roots = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
            roots
                .map(|root| root.join("docker").join(&id))
                .filter(|group| group.exists())
                .collect()
        };
        assert!(!groups().is_empty(), "no control group");
        let io = runtime.attach(&id, crate::harness::OUTPUT).await.unwrap();
        runtime.start(&id).await.unwrap();
        assert_eq!(crate::harness::collect(io).await, " 0 0 4294967295\nhello\n");
        assert_eq!(runtime.wait(&id).await.unwrap().code, 4);
        runtime.delete(&id).await.unwrap();
        assert_eq!(groups(), Vec::<PathBuf>::new());
    });
}
