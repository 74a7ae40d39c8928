//! `docker run`: what the command sees, and what its caller gets back.

use std::fs;

use serde_json::json;

use crate::harness::{Engine, Image, Layer, on_both_drivers, registry, require};

on_both_drivers! {
    fn prints_and_goes_away(engine) {
        engine.busybox(&[], &["echo", "hello"]).run().code(0).prints("hello\n");
        assert_eq!(engine.docker(["ps", "-aq"]).ok(), "", "--rm leaves nothing");
    }

    fn exit_codes_come_back(engine) {
        engine.busybox(&[], &["true"]).run().code(0);
        engine.busybox(&[], &["sh", "-c", "exit 3"]).run().code(3);
        engine.busybox(&[], &["sh", "-c", "exit 255"]).run().code(255);
        // PID 1 has no default signal actions, so a child dies and the shell passes it on.
        engine.busybox(&[], &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).run().code(137);
    }

    fn writes_stay_in_the_container(engine) {
        let name = engine.detached(&["--name", "writer"], &["sh", "-c", "echo new >/etc/os-release; rm /etc/group; echo x >/new"]);
        engine.docker(["wait", &name]).ok();
        let look = "cat /etc/os-release; ls /etc/group /new 2>&1";
        let seen = engine.busybox(&[], &["sh", "-c", look]).run().stdout;
        assert!(seen.contains("NAME=BusyBox") && seen.contains("/etc/group\n"), "{seen}");
        assert!(seen.contains("/new: No such file"), "{seen}");
    }

    fn files_keep_owner_and_mode(engine) {
        let stat = engine.busybox(&[], &["stat", "-c", "%n %u:%g %a", "/home/guest", "/tmp", "/root", "/bin/busybox"]);
        stat.run().code(0).prints("/home/guest 405:100 750\n/tmp 0:0 1777\n/root 0:0 700\n/bin/busybox 0:0 755\n");
        let links = engine.busybox(&[], &["sh", "-c", "[ /bin/ls -ef /bin/busybox ] && stat -c %h /bin/ls"]).ok();
        assert!(links.parse::<u32>().unwrap() > 100, "applets are hard links to one file: {links}");
    }

    fn a_container_can_be_started_again_and_remembers(engine) {
        engine.docker(["create", "--name", "again", &registry().busybox(), "sh", "-c", "echo x >>/count; wc -l </count"]).ok();
        for turn in ["1", "2", "3"] {
            assert_eq!(engine.docker(["start", "-a", "again"]).ok(), turn);
        }
        assert_eq!(engine.docker(["logs", "again"]).ok(), "1\n2\n3");
    }
}

#[test]
fn a_missing_command_is_127_and_a_forbidden_one_126() {
    let engine = Engine::with_busybox("overlay2");
    engine
        .busybox(&[], &["nosuchcmd"])
        .run()
        .code(127)
        .says(r#"exec: "nosuchcmd": executable file not found in $PATH"#)
        .says("failed to create task for container");
    engine
        .busybox(&[], &["/no/such/file"])
        .run()
        .code(127)
        .says("no such file or directory");
    engine
        .busybox(&[], &["/etc/passwd"])
        .run()
        .code(126)
        .says(r#"exec: "/etc/passwd": permission denied"#);
    assert_eq!(
        engine.docker(["ps", "-aq"]).ok(),
        "",
        "--rm also removes what never started"
    );

    // Without --rm the container stays, with the code and the reason.
    engine
        .docker(["run", "--name", "broken", &registry().busybox(), "nosuchcmd"])
        .run()
        .code(127);
    assert_eq!(
        engine.inspect("broken", "{{.State.Status}} {{.State.ExitCode}}"),
        "created 127"
    );
    assert!(
        engine
            .inspect("broken", "{{.State.Error}}")
            .contains("executable file not found")
    );
    engine.docker(["rm", "broken"]).ok();
}

#[test]
fn environment_directory_host_name_and_user_are_set() {
    let engine = Engine::with_busybox("overlay2");
    let run = |options: &[&str], script: &str| engine.busybox(options, &["sh", "-c", script]).ok();

    assert_eq!(
        run(&["-e", "A=1", "-e", "B=two words"], "echo $A $B"),
        "1 two words"
    );
    assert_eq!(run(&["-e", "PATH=/bin"], "echo $PATH"), "/bin");
    assert_eq!(
        run(&[], "echo $PATH"),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    );
    assert_eq!(run(&[], "echo $HOME"), "/root");
    assert_eq!(run(&[], "pwd"), "/");
    assert_eq!(run(&["-w", "/var"], "pwd"), "/var");
    assert_eq!(
        run(&["-w", "/made/for/me"], "pwd"),
        "/made/for/me",
        "a missing working directory is made"
    );
    assert_eq!(
        run(
            &["-h", "ahost"],
            "hostname; echo $HOSTNAME; grep ahost /etc/hosts | wc -l"
        ),
        "ahost\nahost\n1"
    );
    let id = run(&[], "hostname");
    assert_eq!(id.len(), 12, "the short id is the host name: {id}");

    assert_eq!(run(&[], "id -u; id -g"), "0\n0");
    let guest = run(&["-u", "guest"], "id; echo $HOME");
    assert!(
        guest.starts_with("uid=405(guest) gid=100(users) groups="),
        "{guest}"
    );
    assert!(
        guest.contains("50(staff)") && guest.ends_with("/home/guest"),
        "supplementary groups and HOME: {guest}"
    );
    assert_eq!(run(&["-u", "33:staff"], "id -u; id -g"), "33\n50");
    assert_eq!(run(&["-u", "1234"], "id -u; id -g; echo $HOME"), "1234\n0\n/");
    assert_eq!(run(&["-u", "1234:4321"], "id -u; id -g"), "1234\n4321");
    engine
        .busybox(&["-u", "nobodyhere"], &["id"])
        .run()
        .fails()
        .says("unable to find user nobodyhere: no matching entries in passwd file");
}

#[test]
fn entry_point_and_command_combine_as_docker_says() {
    let engine = Engine::with_busybox("overlay2");
    let image = Image::busybox()
        .layer(Layer::new().file("greeting", b"from the image\n"))
        .with("Entrypoint", json!(["echo", "entry"]))
        .with("Cmd", json!(["cmd"]))
        .with("Env", json!(["PATH=/bin", "FROM_IMAGE=yes"]))
        .with("WorkingDir", json!("/etc"))
        .with("User", json!("guest"))
        .push("entrypoint");
    let run = |words: &[&str]| engine.docker([&["run", "--rm"], words].concat()).ok();
    assert_eq!(run(&[&image]), "entry cmd");
    assert_eq!(run(&[&image, "mine"]), "entry mine");
    assert_eq!(
        run(&["--entrypoint", "cat", &image, "/greeting"]),
        "from the image"
    );
    assert_eq!(
        run(&[
            "--entrypoint",
            "sh",
            &image,
            "-c",
            "pwd; id -un; echo $FROM_IMAGE"
        ]),
        "/etc\nguest\nyes"
    );
    assert_eq!(
        run(&["--entrypoint", "/bin/pwd", &image]),
        "/etc",
        "the image's command goes with its entry point"
    );
}

#[test]
fn bind_mounts_show_the_host_s_files() {
    let engine = Engine::with_busybox("overlay2");
    let dir = engine.shared_dir("bind");
    let path = dir.display().to_string();
    fs::write(dir.join("in"), "from the host\n").unwrap();

    let rw = format!("{path}:/mnt");
    let done = engine
        .busybox(
            &["-v", &rw],
            &["sh", "-c", "cat /mnt/in; echo from inside >/mnt/out"],
        )
        .run()
        .code(0);
    assert_eq!(done.stdout, "from the host\n");
    assert_eq!(fs::read_to_string(dir.join("out")).unwrap(), "from inside\n");

    let ro = format!("{path}:/mnt:ro");
    engine
        .busybox(&["-v", &ro], &["sh", "-c", "echo no >/mnt/out"])
        .run()
        .code(1)
        .says("Read-only file system");
    let mount = format!("type=bind,source={path},target=/mnt,readonly");
    engine
        .busybox(&["--mount", &mount], &["touch", "/mnt/x"])
        .run()
        .code(1)
        .says("Read-only file system");

    let file = format!("{path}/in:/etc/motd");
    assert_eq!(
        engine.busybox(&["-v", &file], &["cat", "/etc/motd"]).ok(),
        "from the host"
    );

    // -v makes a missing source, --mount refuses it.
    let missing = format!("{path}/made/here");
    engine
        .busybox(&["-v", &format!("{missing}:/mnt")], &["touch", "/mnt/file"])
        .run()
        .code(0);
    assert!(dir.join("made/here/file").exists());
    engine
        .busybox(
            &["--mount", &format!("type=bind,source={path}/absent,target=/mnt")],
            &["true"],
        )
        .run()
        .code(125)
        .says(&format!(
            r#"invalid mount config for type "bind": bind source path does not exist: {path}/absent"#
        ));
    engine
        .busybox(&["-v", &rw, "-v", &ro], &["true"])
        .run()
        .code(125)
        .says("Duplicate mount point: /mnt");
}

#[test]
fn the_root_file_system_can_be_read_only_with_islands() {
    let engine = Engine::with_busybox("overlay2");
    engine
        .busybox(&["--read-only"], &["touch", "/x"])
        .run()
        .code(1)
        .says("Read-only file system");
    let script = "touch /tmp/x /run/y && grep -c ' /tmp tmpfs ' /proc/mounts && df -k /run | tail -1 | awk '{print $2}'";
    let seen = engine
        .busybox(
            &[
                "--read-only",
                "--tmpfs",
                "/tmp",
                "--tmpfs",
                "/run:size=1m,mode=700",
            ],
            &["sh", "-c", script],
        )
        .ok();
    assert_eq!(seen, "1\n1024");
    // The engine's own files stay writable in Docker too.
    engine
        .busybox(
            &["--read-only"],
            &[
                "sh",
                "-c",
                "cat /etc/hosts /etc/resolv.conf /etc/hostname >/dev/null",
            ],
        )
        .run()
        .code(0);
}

#[test]
fn publishing_a_port_is_refused_honestly_until_it_works() {
    require!(Engine::own(), "dockerd can do it");
    let engine = Engine::with_busybox("overlay2");
    let done = engine.busybox(&["-p", "18080:80"], &["true"]).run().code(125);
    assert!(
        done.stderr.contains("publish") || done.stderr.contains("port"),
        "says what is not supported: {done}"
    );
    assert_eq!(engine.docker(["ps", "-aq"]).ok(), "", "nothing is left behind");
}

#[test]
fn what_is_not_supported_says_so() {
    let engine = Engine::with_busybox("overlay2");
    // Limits without cgroups are ignored, as rootless Docker documents it; but not in silence.
    require!(Engine::own(), "dockerd ignores limits in silence");
    let done = engine
        .busybox(&["--memory", "64m", "--cpus", "0.5"], &["echo", "ran"])
        .run()
        .code(0);
    assert_eq!(done.stdout, "ran\n");
    assert!(
        done.stderr.contains("WARNING"),
        "a limit that is not enforced is announced: {done}"
    );
    engine
        .busybox(&["--runtime", "nosuch"], &["true"])
        .run()
        .code(125)
        .says("nosuch");
    engine
        .busybox(&["--network", "nosuch"], &["true"])
        .run()
        .code(125)
        .says("network nosuch not found");
}
