//! An external OCI runtime: crun, where it is installed.

use std::path::Path;

use skiff_core::ErrorKind;
use skiff_core::runtime::{LaunchSpec, Runtime, TerminalSize};
use tokio::io::AsyncWriteExt;

use crate::Scenario;
use crate::harness::{ALL_STREAMS, Lab, collect, read_until};

pub(crate) const ALL: &[Scenario] = &[
    ("crun_runs_containers", crun_runs_containers),
    ("crun_terminal", crun_terminal),
    ("crun_errors", crun_errors),
];

fn installed() -> bool {
    let installed = Path::new("/usr/bin/crun").exists();
    if !installed {
        println!("skipped: crun is not installed");
    }
    installed
}

fn with_crun(mut spec: LaunchSpec) -> LaunchSpec {
    spec.runtime = Some("crun".to_owned());
    spec
}

fn crun_runs_containers(lab: Lab) {
    if !installed() {
        return;
    }
    let runtime = lab.runtime();
    lab.block(async {
        let (output, exit) = lab
            .run(
                &runtime,
                &with_crun(lab.script("a", "id -u; hostname; grep Seccomp: /proc/self/status; exit 5")),
            )
            .await;
        assert_eq!((output.as_str(), exit.code), ("0\nbox\nSeccomp:\t2\n", 5));
        let mut spec = with_crun(lab.script("b", "cat; sleep 1000"));
        spec.process.open_stdin = true;
        runtime.create(&spec).await.unwrap();
        let mut io = runtime.attach("b", ALL_STREAMS).await.unwrap();
        runtime.start("b").await.unwrap();
        io.input.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
        read_until(&mut io, "hello\n").await;
        runtime.signal("b", 9).await.unwrap();
        assert_eq!(runtime.wait("b").await.unwrap().code, 137);
        runtime.delete("b").await.unwrap();
        assert_eq!(
            std::fs::read_dir(lab.exec_root.join("containers"))
                .unwrap()
                .count(),
            0
        );
    });
}

fn crun_terminal(lab: Lab) {
    if !installed() {
        return;
    }
    let mut config = lab.config();
    config.exec_root = lab.exec_root.join("a-folder-with-a-long-name".repeat(5));
    for runtime in [lab.runtime(), skiff_runtime::ShimRuntime::new(config).unwrap()] {
        lab.block(crun_terminal_in(&lab, &runtime));
    }
}

async fn crun_terminal_in(lab: &Lab, runtime: &skiff_runtime::ShimRuntime) {
    let mut spec = with_crun(lab.script("a", "stty size; tty"));
    spec.process.tty = true;
    spec.process.console_size = Some(TerminalSize {
        height: 20,
        width: 30,
    });
    runtime.create(&spec).await.unwrap();
    let io = runtime.attach("a", ALL_STREAMS).await.unwrap();
    runtime.start("a").await.unwrap();
    assert_eq!(collect(io).await, "20 30\r\n/dev/pts/0\r\n");
    runtime.delete("a").await.unwrap();
}

fn crun_errors(lab: Lab) {
    if !installed() {
        return;
    }
    let runtime = lab.runtime();
    lab.block(async {
        for (command, code, text) in [
            ("nosuchcmd", 127, "executable file not found in $PATH"),
            ("/bin/data", 126, "ermission denied"),
        ] {
            let spec = with_crun(lab.spec("a", &[command]));
            // Some runtimes look only when starting.
            let failure = match runtime.create(&spec).await {
                Err(failure) => failure,
                Ok(_) => {
                    let failure = runtime.start("a").await.expect_err(command);
                    runtime.delete("a").await.unwrap();
                    failure
                }
            };
            let message = failure.error.to_string();
            assert_eq!(
                (failure.exit_code, failure.error.kind()),
                (code, ErrorKind::InvalidParameter),
                "{message}"
            );
            assert!(message.contains(text), "{message}");
        }
        assert_eq!(
            std::fs::read_dir(lab.exec_root.join("containers"))
                .unwrap()
                .count(),
            0
        );
    });
}
