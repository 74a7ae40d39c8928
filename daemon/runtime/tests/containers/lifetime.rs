//! Life and death: signals, the daemon's restart, the shim's end, and nothing left behind.

use std::collections::BTreeSet;
use std::path::Path;

use skiff_core::ErrorKind;
use skiff_core::runtime::{Adopted, Runtime};
use skiff_runtime::live_shims;
use tokio::io::AsyncWriteExt;

use crate::Scenario;
use crate::harness::{ALL_STREAMS, Lab, OUTPUT, bind, collect, host_programs, read_until};

pub(crate) const ALL: &[Scenario] = &[
    ("signals", signals),
    ("operations_out_of_order", operations_out_of_order),
    ("deletion_kills", deletion_kills),
    ("a_new_daemon_adopts", a_new_daemon_adopts),
    (
        "a_killed_shim_takes_its_container_along",
        a_killed_shim_takes_its_container_along,
    ),
    (
        "an_abandoned_creation_leaves_nothing",
        an_abandoned_creation_leaves_nothing,
    ),
    ("long_paths", long_paths),
    ("two_hundred_runs_leave_nothing", two_hundred_runs_leave_nothing),
    (
        "init_reaps_forwards_and_ends_as_the_command",
        init_reaps_forwards_and_ends_as_the_command,
    ),
    ("init_needs_a_static_program", init_needs_a_static_program),
    ("the_program_is_protected", the_program_is_protected),
];

fn signals(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let spec = lab.script("a", "trap 'echo term; exit 6' TERM; trap 'echo usr' USR1; trap 'echo rt' 40; echo ready; while :; do sleep 0.05; done");
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", OUTPUT).await.unwrap();
        runtime.start("a").await.unwrap();
        read_until(&mut io, "ready\n").await;
        runtime.signal("a", 10).await.unwrap();
        read_until(&mut io, "usr\n").await;
        runtime.signal("a", 40).await.unwrap();
        read_until(&mut io, "rt\n").await;
        runtime.signal("a", 15).await.unwrap();
        assert_eq!(collect(io).await, "term\n");
        let exit = runtime.wait("a").await.unwrap();
        assert_eq!((exit.code, runtime.wait("a").await.unwrap()), (6, exit.clone()), "asked again, answered the same");
        assert_eq!(runtime.signal("a", 15).await.unwrap_err().kind(), ErrorKind::Conflict);
        runtime.delete("a").await.unwrap();
        let spec = lab.spec("b", &["sleep", "1000"]);
        runtime.create(&spec).await.unwrap();
        runtime.start("b").await.unwrap();
        let (first, second) = tokio::join!(runtime.wait("b"), async {
            runtime.signal("b", 9).await.unwrap();
            runtime.wait("b").await
        });
        assert_eq!((first.unwrap().code, second.unwrap().code), (137, 137));
        runtime.delete("b").await.unwrap();
    });
}

fn operations_out_of_order(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        assert_eq!(runtime.wait("a").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(
            runtime.signal("a", 9).await.unwrap_err().kind(),
            ErrorKind::NotFound
        );
        assert_eq!(
            runtime.attach("../../etc", OUTPUT).await.err().unwrap().kind(),
            ErrorKind::InvalidParameter
        );
        assert!(runtime.delete("a").await.is_ok());
        assert_eq!(runtime.adopt("a").await.unwrap(), Adopted::Gone);
        let spec = lab.script("a", "exit 2");
        runtime.create(&spec).await.unwrap();
        assert_eq!(
            runtime.create(&spec).await.unwrap_err().error.kind(),
            ErrorKind::Conflict
        );
        runtime.start("a").await.unwrap();
        assert!(runtime.start("a").await.is_err());
        assert_eq!(runtime.wait("a").await.unwrap().code, 2);
        // The old task was not deleted, but has ended: a new one may take its place.
        assert_eq!(lab.run(&runtime, &spec).await.1.code, 2);
        // Created, never started, killed.
        runtime.create(&spec).await.unwrap();
        runtime.signal("a", 9).await.unwrap();
        assert_eq!(runtime.wait("a").await.unwrap().code, 137);
        assert!(runtime.start("a").await.is_err());
        runtime.delete("a").await.unwrap();
    });
}

fn deletion_kills(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        for started in [false, true] {
            runtime
                .create(&lab.script("a", "sleep 1000 & sleep 1000"))
                .await
                .unwrap();
            if started {
                runtime.start("a").await.unwrap();
            }
            let (waited, deleted) = tokio::join!(runtime.wait("a"), runtime.delete("a"));
            deleted.unwrap();
            // The waiter was told, or came too late.
            assert!(waited.map_or_else(|e| e.kind() == ErrorKind::NotFound, |exit| exit.code == 137));
            assert!(!lab.exec_root.join("containers/a").exists());
            assert!(live_shims(&lab.exec_root).is_empty());
        }
    });
}

fn a_new_daemon_adopts(lab: Lab) {
    let first = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "read x; echo got $x; exit 3");
        spec.process.open_stdin = true;
        let pid = first.create(&spec).await.unwrap();
        let second = lab.runtime();
        assert_eq!(second.adopt("a").await.unwrap(), Adopted::Created(pid));
        first.start("a").await.unwrap();
        drop(first);
        let shims = live_shims(&lab.exec_root);
        assert_eq!(shims.len(), 1);
        for namespace in ["user", "mnt"] {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            assert_eq!(of(&shims[0].pid.to_string()), of("self"));
        }
        assert_eq!(second.adopt("a").await.unwrap(), Adopted::Running(pid));
        let mut io = second.attach("a", ALL_STREAMS).await.unwrap();
        io.input.as_mut().unwrap().write_all(b"it\n").await.unwrap();
        assert_eq!(read_until(&mut io, "got it\n").await, "got it\n");
        let exit = second.wait("a").await.unwrap();
        assert_eq!(exit.code, 3);
        let third = lab.runtime();
        assert_eq!(third.adopt("a").await.unwrap(), Adopted::Exited(exit.clone()));
        // The shim may be gone, too: the file it left says the same.
        end(&shims[0]);
        assert_eq!(third.adopt("a").await.unwrap(), Adopted::Exited(exit.clone()));
        assert_eq!(third.wait("a").await.unwrap(), exit);
        third.delete("a").await.unwrap();
        assert_eq!(third.adopt("a").await.unwrap(), Adopted::Gone);
    });
}

/// Kills a process for certain and waits for its end.
fn end(process: &skiff_sys::identity::ProcessIdentity) {
    let pidfd = process.open().unwrap().expect("it lives");
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    wait_for(&pidfd);
}

fn wait_for(pidfd: &std::os::fd::OwnedFd) {
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
}

fn a_killed_shim_takes_its_container_along(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        for (started, user) in [(false, ""), (true, ""), (true, "web")] {
            let mut spec = lab.script("a", "trap '' TERM HUP; while :; do sleep 1; done");
            spec.process.user = user.to_owned();
            let pid = runtime.create(&spec).await.unwrap();
            if started {
                runtime.start("a").await.unwrap();
            }
            let task = skiff_sys::identity::ProcessIdentity::of(pid)
                .unwrap()
                .open()
                .unwrap()
                .unwrap();
            let shim = live_shims(&lab.exec_root).remove(0);
            let (exit, ()) = tokio::join!(runtime.wait("a"), async {
                // Let the waiter connect first.
                tokio::task::yield_now().await;
                end(&shim);
            });
            assert_eq!(exit.unwrap().code, 137);
            wait_for(&task);
            runtime.delete("a").await.unwrap();
            assert!(!lab.exec_root.join("containers/a").exists());
        }
        // Killed while no daemon watches.
        let pid = runtime.create(&lab.script("b", "sleep 1000")).await.unwrap();
        runtime.start("b").await.unwrap();
        let task = skiff_sys::identity::ProcessIdentity::of(pid)
            .unwrap()
            .open()
            .unwrap()
            .unwrap();
        end(&live_shims(&lab.exec_root).remove(0));
        assert_eq!(lab.runtime().adopt("b").await.unwrap(), Adopted::Gone);
        wait_for(&task);
        assert!(!lab.exec_root.join("containers/b").exists());
    });
}

fn an_abandoned_creation_leaves_nothing(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        for round in 0..20u64 {
            let spec = lab.script("a", "sleep 1000");
            // Dropped at an arbitrary point.
            let _ = tokio::time::timeout(
                std::time::Duration::from_micros(round * 700),
                runtime.create(&spec),
            )
            .await;
            runtime.delete("a").await.unwrap();
        }
        assert_eq!(
            std::fs::read_dir(lab.exec_root.join("containers")).map_or(0, Iterator::count),
            0
        );
    });
    no_process_names(&lab.folder);
}

/// Waits until no process has the folder in its command line any more, except the test itself.
fn no_process_names(folder: &Path) {
    let needle = folder.join("run");
    let needle = needle.to_str().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let named: Vec<_> = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| {
                std::fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(needle))
            })
            .map(|entry| entry.file_name())
            .collect();
        if named.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "still there: {named:?}");
        std::thread::yield_now();
    }
}

fn long_paths(lab: Lab) {
    let mut config = lab.config();
    config.exec_root = lab
        .exec_root
        .join("a-folder-with-a-long-name".repeat(5))
        .join("another".repeat(5));
    let runtime = skiff_runtime::ShimRuntime::new(config).unwrap();
    lab.block(async {
        for tty in [false, true] {
            let mut spec = lab.script(&"0123456789abcdef".repeat(4), "echo fine");
            spec.process.tty = tty;
            let (output, exit) = lab.run(&runtime, &spec).await;
            assert_eq!((output.trim(), exit.code), ("fine", 0));
        }
    });
}

fn two_hundred_runs_leave_nothing(lab: Lab) {
    let runtime = lab.runtime();
    let mounts = || {
        std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .count()
    };
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    lab.block(async {
        // The first runs make what stays: the runtime's own descriptors, its threads.
        for _ in 0..4 {
            lab.run(&runtime, &lab.script("warm", "true")).await;
        }
        let before = (mounts(), descriptors());
        for batch in 0..20 {
            let runs = (0..10).map(|n| {
                let id = format!("c{batch}-{n}");
                let spec = lab.script(&id, "echo $0; exit 3");
                let (lab, runtime) = (&lab, &runtime);
                async move { lab.run(runtime, &spec).await }
            });
            for run in futures(runs).await {
                assert_eq!((run.0.as_str(), run.1.code), ("/bin/sh\n", 3));
            }
        }
        assert_eq!((mounts(), descriptors()), before);
    });
    assert!(live_shims(&lab.exec_root).is_empty());
    assert_eq!(
        std::fs::read_dir(lab.exec_root.join("containers"))
            .unwrap()
            .count(),
        0
    );
    no_process_names(&lab.folder);
    let left: BTreeSet<_> = std::fs::read_dir(&lab.exec_root)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["containers".into()].into());
}

/// Runs futures at the same time.
async fn futures<T, F: Future<Output = T>>(all: impl Iterator<Item = F>) -> Vec<T> {
    let mut pending: Vec<_> = all.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, result) in &mut pending {
            if result.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *result = Some(value);
            }
        }
        if pending.iter().all(|(_, result)| result.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pending.into_iter().filter_map(|(_, result)| result).collect()
}

/// The role itself; our test program is dynamic, so it gets the host's libraries.
fn init_reaps_forwards_and_ends_as_the_command(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let with_init = |args: &[&str]| {
            let mut all = vec!["/init-program", "init", "--"];
            all.extend_from_slice(args);
            let mut spec = lab.spec("a", &all);
            host_programs(&mut spec);
            spec.mounts
                .push(bind(lab.folder.join("containers-test"), "/init-program", true));
            spec
        };
        for (args, code) in [
            (&["sh", "-c", "exit 7"][..], 7),
            (&["nosuchcmd"], 127),
            (&["/bin/data"], 126),
            (&["sh", "-c", "kill -9 $$"], 137),
        ] {
            assert_eq!(lab.run(&runtime, &with_init(args)).await.1.code, code, "{args:?}");
        }
        // Orphans are reaped (until then there are five: init, the shell, the two of the pipeline, the orphan), and a
        // signal reaches the command although process 1 itself would ignore it.
        let script = "(sleep 0.01 & true); trap 'exit 8' TERM; \
                      while [ $(ls -d /proc/[0-9]* | wc -l) -gt 4 ]; do sleep 0.02; done; echo ready; \
                      while :; do sleep 0.05; done";
        let spec = with_init(&["sh", "-c", script]);
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("a", OUTPUT).await.unwrap();
        runtime.start("a").await.unwrap();
        read_until(&mut io, "ready\n").await;
        runtime.signal("a", 15).await.unwrap();
        assert_eq!(collect(io).await, "");
        assert_eq!(runtime.wait("a").await.unwrap().code, 8);
        runtime.delete("a").await.unwrap();
    });
}

/// `--init` works with a static build and is refused with another.
fn init_needs_a_static_program(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let mut spec = lab.script("a", "cat /proc/1/cmdline | tr '\\0' ' '; exit 9");
        spec.init = true;
        if cfg!(target_feature = "crt-static") {
            let (output, exit) = lab.run(&runtime, &spec).await;
            assert!(output.starts_with("/sbin/docker-init -- /bin/sh"), "{output}");
            assert_eq!(exit.code, 9);
        } else {
            assert_eq!(
                runtime.create(&spec).await.unwrap_err().error.kind(),
                ErrorKind::NotImplemented
            );
        }
    });
}

/// A program started through the protected path cannot be opened for writing by way of `/proc/PID/exe`.
fn the_program_is_protected(lab: Lab) {
    let path = skiff_runtime::protected_program(&lab.exec_root).unwrap();
    assert_eq!(
        skiff_runtime::protected_program(&lab.exec_root).unwrap(),
        path,
        "asked again"
    );
    let read_only = |path: &Path| {
        let flags = rustix::fs::statvfs(path).unwrap().f_flag;
        flags.contains(rustix::fs::StatVfsMountFlags::RDONLY)
    };
    assert!(read_only(&path) && !read_only(&lab.exec_root));
    let mut config = lab.config();
    config.shim_command[0] = path.into();
    let runtime = skiff_runtime::ShimRuntime::new(config).unwrap();
    lab.block(async {
        runtime.create(&lab.script("a", "true")).await.unwrap();
        let shim = live_shims(&lab.exec_root).remove(0);
        // (While it runs the kernel refuses writers anyway; the mount goes on refusing them afterwards.)
        assert!(read_only(Path::new(&format!("/proc/{}/exe", shim.pid))));
        runtime.delete("a").await.unwrap();
    });
}
