//! Exit codes, users, environment, mounts: what `docker run` shows first.

use skiff_core::ErrorKind;
use skiff_core::runtime::{LogTarget, MountKind, MountSpec, Runtime};

use crate::Scenario;
use crate::harness::{Lab, bind};

pub(crate) const ALL: &[Scenario] = &[
    ("exit_codes", exit_codes),
    (
        "missing_and_unexecutable_commands",
        missing_and_unexecutable_commands,
    ),
    ("users_and_groups", users_and_groups),
    (
        "environment_and_working_directory",
        environment_and_working_directory,
    ),
    ("mounts", mounts),
    ("read_only_rootfs", read_only_rootfs),
    (
        "nothing_is_left_behind_by_a_failure",
        nothing_is_left_behind_by_a_failure,
    ),
];

fn exit_codes(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        for (id, script, code) in [
            ("a", "exit 0", 0),
            ("b", "exit 7", 7),
            ("c", "kill -9 $$ & wait; exit 3", 3),
            ("d", "false", 1),
        ] {
            let (output, exit) = lab.run(&runtime, &lab.script(id, script)).await;
            assert_eq!(exit.code, code, "{script}: {output}");
            assert!(!lab.exec_root.join("containers").join(id).exists());
        }
        let (output, exit) = lab.run(&runtime, &lab.spec("e", &["/bin/garbage"])).await;
        assert_eq!(
            (output.as_str(), exit.code),
            ("exec /bin/garbage: exec format error\n", 255)
        );
    });
}

fn missing_and_unexecutable_commands(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let cases = [
            ("nosuchcmd", 127, "exec: \"nosuchcmd\": executable file not found in $PATH: unknown"),
            ("/no/such", 127, "no such file or directory: unknown"),
            ("/bin/data", 126, "exec: \"/bin/data\": permission denied: unknown"),
            ("/etc", 126, "exec: \"/etc\": is a directory: unknown"),
        ];
        for (command, code, text) in cases {
            let failure = runtime.create(&lab.spec("a", &[command])).await.expect_err(command);
            let message = failure.error.to_string();
            assert_eq!((failure.exit_code, failure.error.kind()), (code, ErrorKind::InvalidParameter), "{message}");
            assert!(message.ends_with(text), "{message}");
            assert!(message.starts_with("failed to create task for container: failed to create shim task: OCI runtime create failed"), "{message}");
            assert!(!lab.exec_root.join("containers/a").exists());
        }
        // Executable for its owner only is enough for the owner, and for root.
        std::fs::copy(lab.rootfs.join("bin/busybox"), lab.rootfs.join("bin/private")).unwrap();
        std::fs::set_permissions(lab.rootfs.join("bin/private"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let mut spec = lab.spec("b", &["/bin/private", "true"]);
        assert_eq!(lab.run(&runtime, &spec).await.0, "private: applet not found\n", "executed");
        spec.process.user = "web".to_owned();
        assert_eq!(runtime.create(&spec).await.expect_err("not for others").exit_code, 126);
    });
}

fn users_and_groups(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        for (user, expected) in [
            ("", "uid=0(root) gid=0(root) groups=0(root)"),
            ("web", "uid=33(web) gid=34(www) groups=4(adm),34(www)"),
            ("33:0", "uid=33(web) gid=0(root) groups=0(root)"),
            ("1000:1001", "uid=1000 gid=1001 groups=1001"),
        ] {
            let mut spec = lab.script("a", "id; echo $HOME; echo written > /dev/stdout");
            spec.process.user = user.to_owned();
            let output = lab.output_of(&spec).await;
            let mut lines = output.lines();
            let id = lines.next().unwrap();
            assert!(
                id == expected || id.replace("groups=34(www),4(adm)", "groups=4(adm),34(www)") == expected,
                "{user}: {id}"
            );
            assert_eq!(
                lines.next(),
                Some(if user.is_empty() {
                    "/root"
                } else if user.starts_with("1000") {
                    "/"
                } else {
                    "/srv/web"
                })
            );
            assert_eq!(
                lines.next(),
                Some("written"),
                "{user} cannot open its own standard output"
            );
        }
        let mut spec = lab.script("a", "id -G");
        spec.process.additional_groups = vec!["adm".to_owned(), "77".to_owned()];
        assert_eq!(lab.output_of(&spec).await, "0 4 77\n");
        for (user, text) in [
            (
                "nobody",
                "unable to find user nobody: no matching entries in passwd file",
            ),
            (
                "web:wheel",
                "unable to find group wheel: no matching entries in group file",
            ),
            (
                "2000000000",
                "user 2000000000:0 does not exist in the user namespace",
            ),
        ] {
            spec.process.user = user.to_owned();
            let failure = runtime.create(&spec).await.expect_err(user);
            assert!(failure.error.to_string().contains(text), "{}", failure.error);
            assert_eq!(failure.exit_code, 128);
        }
    });
}

fn environment_and_working_directory(lab: Lab) {
    lab.block(async {
        let mut spec = lab.script("a", "echo $A-$B; pwd; hostname; stat -c %u:%a /made; env | wc -l");
        spec.process
            .env
            .extend(["A=1".to_owned(), "B=two words".to_owned()]);
        spec.process.cwd = "/made/here".to_owned();
        spec.process.user = "web".to_owned();
        // PATH, A, B and HOME are given; the shell adds PWD and SHLVL.
        assert_eq!(
            lab.output_of(&spec).await,
            "1-two words\n/made/here\nbox\n0:755\n6\n"
        );
        let mut spec = lab.script("b", "pwd");
        spec.process.cwd = "/etc/passwd".to_owned();
        let failure = lab.runtime().create(&spec).await.expect_err("a file");
        assert!(
            failure.error.to_string().contains("chdir to cwd"),
            "{}",
            failure.error
        );
    });
}

fn mounts(lab: Lab) {
    std::fs::create_dir(lab.folder.join("data")).unwrap();
    std::fs::write(lab.folder.join("data/file"), "hello\n").unwrap();
    lab.block(async {
        let mut spec = lab.script(
            "a",
            "cat /data/file; echo more >> /data/file; cat /ro/file; echo x 2>/dev/null >> /ro/file || echo refused; cat /deep/er/file; \
             df -m /tmp/t | tail -1 | awk '{print $2}'; df -m /dev/shm | tail -1 | awk '{print $2}'; touch /tmp/t/x && ls /tmp/t; \
             ls /dev | grep -v core | sort | tr '\\n' ' '",
        );
        spec.mounts = vec![
            bind(lab.folder.join("data"), "/data", false),
            bind(lab.folder.join("data"), "/ro", true),
            bind(lab.folder.join("data/file"), "/deep/er/file", false),
            MountSpec {
                target: "/tmp/t".to_owned(),
                kind: MountKind::Tmpfs { options: ["noexec", "nosuid", "nodev", "size=8m"].map(str::to_owned).to_vec() },
                read_only: false,
            },
        ];
        spec.shm_size = 16 << 20;
        let output = lab.output_of(&spec).await;
        assert_eq!(
            output.lines().collect::<Vec<_>>(),
            [
                "hello", "hello", "more", "refused", "hello", "more", "8", "16", "x",
                "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
            ]
        );
        assert_eq!(std::fs::read_to_string(lab.folder.join("data/file")).unwrap(), "hello\nmore\n");
    });
}

fn read_only_rootfs(lab: Lab) {
    lab.block(async {
        let mut spec = lab.script(
            "a",
            "touch /x 2>&1; touch /tmp/ok && echo ok; touch /dev/shm/ok && echo ok",
        );
        spec.readonly_rootfs = true;
        spec.mounts.push(MountSpec {
            target: "/tmp".to_owned(),
            kind: MountKind::Tmpfs {
                options: vec!["mode=1777".to_owned()],
            },
            read_only: false,
        });
        assert_eq!(
            lab.output_of(&spec).await,
            "touch: /x: Read-only file system\nok\nok\n"
        );
    });
}

fn nothing_is_left_behind_by_a_failure(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "true");
        spec.rootfs = lab.folder.join("nowhere");
        assert!(
            runtime
                .create(&spec)
                .await
                .unwrap_err()
                .error
                .to_string()
                .contains("nowhere")
        );
        spec = lab.script("a", "true");
        spec.mounts.push(bind(lab.folder.join("missing"), "/x", false));
        assert!(runtime.create(&spec).await.is_err());
        spec = lab.script("a", "true");
        spec.log = LogTarget::JsonFile {
            path: "/nonexistent/log".into(),
            max_size: None,
            max_files: 1,
        };
        assert!(
            runtime
                .create(&spec)
                .await
                .unwrap_err()
                .error
                .to_string()
                .contains("opening the container's log")
        );
        spec = lab.script("a", "true");
        spec.runtime = Some("nonesuch".to_owned());
        assert_eq!(
            runtime.create(&spec).await.unwrap_err().error.kind(),
            ErrorKind::InvalidParameter
        );
        assert_eq!(
            std::fs::read_dir(lab.exec_root.join("containers"))
                .unwrap()
                .count(),
            0
        );
        // And the same name can be used at once.
        assert_eq!(lab.run(&runtime, &lab.script("a", "exit 4")).await.1.code, 4);
    });
}
