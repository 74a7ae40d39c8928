//! Figures, not verdicts: run with `cargo test --release -p skiff-runtime --test containers -- --ignored`.

use std::time::{Duration, Instant};

use skiff_core::runtime::{LogRequest, Runtime, SeccompProfile};
use skiff_runtime::live_shims;

use crate::Scenario;
use crate::harness::Lab;

pub(crate) const ALL: &[Scenario] = &[
    ("measure_latency", latency),
    ("measure_logs", logs),
    ("measure_memory", memory),
];

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn latency(lab: Lab) {
    let runtime = lab.runtime();
    let variants = [
        ("embedded", SeccompProfile::Builtin, None),
        ("embedded, no filter", SeccompProfile::Unconfined, None),
        ("crun", SeccompProfile::Builtin, Some("crun".to_owned())),
    ];
    for (name, seccomp, program) in variants {
        let mut steps = [const { Vec::new() }; 5];
        lab.block(async {
            for _ in 0..40 {
                let mut spec = lab.spec("a", &["/bin/true"]);
                spec.seccomp = seccomp.clone();
                spec.runtime = program.clone();
                let mut marks = vec![Instant::now()];
                runtime.create(&spec).await.unwrap();
                marks.push(Instant::now());
                runtime.start("a").await.unwrap();
                marks.push(Instant::now());
                runtime.wait("a").await.unwrap();
                marks.push(Instant::now());
                runtime.delete("a").await.unwrap();
                marks.push(Instant::now());
                for (step, pair) in steps.iter_mut().zip(marks.windows(2)) {
                    step.push(pair[1] - pair[0]);
                }
                steps[4].push(marks[4] - marks[0]);
            }
        });
        let [create, start, wait, delete, all] = steps.map(median);
        println!(
            "{name}: create {create:.2} ms, start {start:.2}, wait {wait:.2}, delete {delete:.2}; together {all:.2}"
        );
    }
}

fn logs(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        let line = "x".repeat(99);
        // 200 MB in lines of 100 bytes.
        let script = format!("yes {line} | head -n 2000000");
        let spec = lab.script("a", &script);
        runtime.create(&spec).await.unwrap();
        let started = Instant::now();
        runtime.start("a").await.unwrap();
        assert_eq!(runtime.wait("a").await.unwrap().code, 0);
        println!(
            "200 MB written through the shim: {:.2} s",
            started.elapsed().as_secs_f64()
        );
        let started = Instant::now();
        let request = LogRequest {
            target: spec.log.clone(),
            stdout: true,
            stderr: true,
            since: None,
            until: None,
            tail: None,
            follow: None,
        };
        let mut log = runtime.logs(request.clone()).await.unwrap();
        let mut count = 0;
        while let Some(entry) = log.recv().await {
            count += entry.unwrap().line.len();
        }
        assert_eq!(count, 200_000_000);
        println!("200 MB read back: {:.2} s", started.elapsed().as_secs_f64());
        let started = Instant::now();
        let mut log = runtime
            .logs(LogRequest {
                tail: Some(10),
                ..request
            })
            .await
            .unwrap();
        while log.recv().await.is_some() {}
        println!(
            "the last ten lines of it: {:.2} ms",
            started.elapsed().as_secs_f64() * 1e3
        );
        runtime.delete("a").await.unwrap();
    });
}

fn memory(lab: Lab) {
    let runtime = lab.runtime();
    lab.block(async {
        for id in ["a", "b", "c", "d"] {
            runtime.create(&lab.spec(id, &["sleep", "1000"])).await.unwrap();
            runtime.start(id).await.unwrap();
        }
        for shim in live_shims(&lab.exec_root) {
            let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", shim.pid)).unwrap();
            let wanted = ["Rss:", "Pss:", "Private_Clean:", "Private_Dirty:"];
            let lines: Vec<_> = text
                .lines()
                .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
                .collect();
            println!("{}", lines.join("  ").replace("      ", ""));
        }
        for id in ["a", "b", "c", "d"] {
            runtime.delete(id).await.unwrap();
        }
    });
}
