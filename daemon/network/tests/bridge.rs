//! Sandboxes and the default bridge against the real kernel, as an ordinary user.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking and print measurements"
)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::*;
use skiff_core::network::{NetworkMode, Networks};
use skiff_network::{BridgeNetworks, NetworkConfig};

#[test]
fn containers_reach_each_other_and_the_gateway() {
    as_daemon("containers_reach_each_other_and_the_gateway", async || {
        let host = Host::new();
        let networks = host.networks();
        let first = networks
            .connect(&request("first", NetworkMode::Bridge))
            .await
            .unwrap();
        let second = networks
            .connect(&request("second", NetworkMode::Bridge))
            .await
            .unwrap();
        assert_eq!(address(&first), Ipv4Addr::new(172, 17, 0, 2));
        assert_eq!(address(&second), Ipv4Addr::new(172, 17, 0, 3));
        assert_eq!(first.endpoints[0].mac_address, "02:42:ac:11:00:02");
        assert_eq!(inside(open(&first), interfaces), ["eth0", "lo"]);

        let server = serve(open(&second).as_fd(), address(&second));
        assert_eq!(ask(open(&first), server).unwrap(), "172.17.0.2");
        // A container reaches itself, by its own address too.
        assert_eq!(ask(open(&second), server).unwrap(), "172.17.0.3");
        let gateway = serve(host.namespace.as_fd(), Ipv4Addr::new(172, 17, 0, 1));
        assert_eq!(ask(open(&second), gateway).unwrap(), "172.17.0.3");

        let eth0 = inside(open(&first), || run("ip -o addr show eth0"));
        assert!(
            eth0.contains("172.17.0.2/16") && eth0.contains("brd 172.17.255.255"),
            "{eth0}"
        );
        assert!(!eth0.contains("inet6"), "{eth0}");
        assert!(inside(&host.namespace, || run("ip -o -6 addr show docker0")).is_empty());
        networks.disconnect("first").await.unwrap();
        networks.disconnect("second").await.unwrap();
        networks.disconnect("second").await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn none_has_a_loopback_and_nothing_else() {
    as_daemon("none_has_a_loopback_and_nothing_else", async || {
        let host = Host::new();
        let networks = host.networks();
        let sandbox = networks
            .connect(&request("lonely", NetworkMode::None))
            .await
            .unwrap();
        assert_eq!(sandbox.endpoints[0].address, None);
        assert_eq!(inside(open(&sandbox), interfaces), ["lo"]);
        let server = serve(open(&sandbox).as_fd(), Ipv4Addr::LOCALHOST);
        assert_eq!(ask(open(&sandbox), server).unwrap(), "127.0.0.1");
        // It needs no bridge.
        assert_eq!(inside(&host.namespace, interfaces), ["lo"]);
        networks.disconnect("lonely").await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn fifty_at_once_get_fifty_addresses_and_leave_nothing() {
    as_daemon(
        "fifty_at_once_get_fifty_addresses_and_leave_nothing",
        async || {
            let host = Host::new();
            let networks = host.networks();
            let start = Instant::now();
            networks.ready().await.unwrap();
            println!("set-up of the bridge: {:?}", start.elapsed());
            time_one_by_one(&networks).await;

            let start = Instant::now();
            let tasks: Vec<_> = (0..50)
                .map(|number| {
                    let networks = networks.clone();
                    tokio::spawn(async move {
                        networks
                            .connect(&request(&format!("c{number}"), NetworkMode::Bridge))
                            .await
                    })
                })
                .collect();
            let mut addresses = HashSet::new();
            for task in tasks {
                addresses.insert(address(&task.await.unwrap().unwrap()));
            }
            println!("50 connects at once: {:?}", start.elapsed());
            assert_eq!(addresses.len(), 50);
            assert!(
                addresses
                    .iter()
                    .all(|address| (2..=51).contains(&address.octets()[3])),
                "{addresses:?}"
            );
            assert_eq!(veths(&host.namespace).len(), 50);

            let start = Instant::now();
            let tasks: Vec<_> = (0..50)
                .map(|number| {
                    let networks = networks.clone();
                    tokio::spawn(async move { networks.disconnect(&format!("c{number}")).await })
                })
                .collect();
            for task in tasks {
                task.await.unwrap().unwrap();
            }
            println!("50 disconnects at once: {:?}", start.elapsed());
            host.assert_clean();
            let again = networks
                .connect(&request("again", NetworkMode::Bridge))
                .await
                .unwrap();
            assert_eq!(address(&again), Ipv4Addr::new(172, 17, 0, 2));
        },
    );
}

async fn time_one_by_one(networks: &BridgeNetworks) {
    for mode in [NetworkMode::None, NetworkMode::Bridge] {
        let (mut connects, mut disconnects) = (Vec::new(), Vec::new());
        for number in 0..20 {
            let request = request(&format!("t{number}"), mode.clone());
            let start = Instant::now();
            networks.connect(&request).await.unwrap();
            connects.push(start.elapsed());
            let start = Instant::now();
            networks.disconnect(&request.container_id).await.unwrap();
            disconnects.push(start.elapsed());
        }
        connects.sort();
        disconnects.sort();
        println!(
            "{mode:?}: median connect {:?}, disconnect {:?}",
            connects[10], disconnects[10]
        );
    }
}

#[test]
fn traffic_to_the_outside_is_masqueraded_and_none_comes_in_unasked() {
    as_daemon(
        "traffic_to_the_outside_is_masqueraded_and_none_comes_in_unasked",
        async || {
            let host = Host::new();
            let networks = host.networks();
            let outside = new_namespace();
            wire(&host, outside.as_fd());
            let sandbox = networks
                .connect(&request("inner", NetworkMode::Bridge))
                .await
                .unwrap();

            let server = serve(outside.as_fd(), Ipv4Addr::new(192, 0, 2, 2));
            assert_eq!(ask(open(&sandbox), server).unwrap(), "192.0.2.1");

            let inner = serve(open(&sandbox).as_fd(), address(&sandbox));
            inside(&outside, || run("ip route add 172.17.0.0/16 via 192.0.2.1"));
            let refused = ask_within(&outside, inner, Duration::from_millis(300)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::TimedOut);
            // It was the packet filter: the same packet passes without it.
            inside(&host.namespace, || run("nft delete table ip skiff"));
            assert_eq!(ask(&outside, inner).unwrap(), "192.0.2.2");
        },
    );
}

#[test]
fn nothing_is_lost_right_after_a_connect() {
    as_daemon("nothing_is_lost_right_after_a_connect", async || {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release
            .split(['.', '-'])
            .map(|number| number.parse::<u32>().unwrap_or(0));
        if (numbers.next(), numbers.next()) < (Some(6), Some(8)) {
            println!("SKIP: Linux {release} takes notice of a new carrier only after some milliseconds");
            return;
        }
        let host = Host::new();
        let networks = host.networks();
        networks.ready().await.unwrap();
        let gateway = serve(host.namespace.as_fd(), Ipv4Addr::new(172, 17, 0, 1));
        for _ in 0..10 {
            // The first on an empty bridge, and the second.
            let first = networks
                .connect(&request("first", NetworkMode::Bridge))
                .await
                .unwrap();
            let start = Instant::now();
            ask(open(&first), gateway).unwrap();
            let second = networks
                .connect(&request("second", NetworkMode::Bridge))
                .await
                .unwrap();
            let server = serve(open(&second).as_fd(), address(&second));
            ask(open(&first), server).unwrap();
            // A lost packet is sent again after a second.
            assert!(
                start.elapsed() < Duration::from_millis(900),
                "{:?}",
                start.elapsed()
            );
            networks.disconnect("first").await.unwrap();
            networks.disconnect("second").await.unwrap();
        }
    });
}

#[test]
fn as_root_the_bridge_is_in_the_daemons_namespace() {
    as_root("as_root_the_bridge_is_in_the_daemons_namespace", async || {
        run("nft add table ip other");
        run("nft add chain ip other forward { type filter hook forward priority 0; }");
        let directory = tempfile::tempdir().unwrap();
        let config = || NetworkConfig::new(directory.path().join("exec"), directory.path().join("state"));
        for _ in 0..2 {
            let networks = BridgeNetworks::new(config()).unwrap();
            networks.recover(&[]).await.unwrap();
            let sandbox = networks
                .connect(&request("c1", NetworkMode::Bridge))
                .await
                .unwrap();
            assert!(interfaces().contains(&sandbox.endpoints[0].host_interface));
            let server = serve(open(&sandbox).as_fd(), address(&sandbox));
            let here = skiff_sys::netns::current().unwrap();
            assert_eq!(ask(&here, server).unwrap(), "172.17.0.1");
            let tables = run("nft list tables");
            assert_eq!(tables.matches("table ip skiff").count(), 1, "{tables}");
            assert!(run("nft list table ip other").contains("chain forward"));
            networks.disconnect("c1").await.unwrap();
            assert!(!interfaces().contains(&sandbox.endpoints[0].host_interface));
        }
    });
}

#[test]
fn containers_may_use_low_ports_and_ping_without_privileges() {
    as_daemon(
        "containers_may_use_low_ports_and_ping_without_privileges",
        async || {
            let host = Host::new();
            let networks = host.networks();
            let sandbox = networks.connect(&request("c1", NetworkMode::None)).await.unwrap();
            let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
            let (ports, groups) = inside(open(&sandbox), || {
                (read("ip_unprivileged_port_start"), read("ping_group_range"))
            });
            assert_eq!(ports.trim(), "0");
            let groups: Vec<u32> = groups
                .split_whitespace()
                .map(|group| group.parse().unwrap())
                .collect();
            assert!(groups[0] == 0 && groups[1] >= 65_535, "{groups:?}");
        },
    );
}

/// Connects the bridge's namespace (192.0.2.1) with another one (192.0.2.2).
fn wire(host: &Host, outside: std::os::fd::BorrowedFd<'_>) {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let (ready, started) = std::sync::mpsc::channel();
    let outside = outside.try_clone_to_owned().unwrap();
    // `ip` wants the other namespace by the id of a process (or thread) in it.
    let thread = std::thread::spawn(move || {
        skiff_sys::ns::join(&outside, skiff_sys::ns::Kind::Network).unwrap();
        ready.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
        receiver.recv().unwrap();
        run("ip addr add 192.0.2.2/24 dev wire1");
        run("ip link set wire1 up");
    });
    let thread_id = started.recv().unwrap();
    inside(&host.namespace, || {
        run(&format!(
            "ip link add wire0 type veth peer name wire1 netns {thread_id}"
        ));
        run("ip addr add 192.0.2.1/24 dev wire0");
        run("ip link set wire0 up");
    });
    sender.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_restarted_daemon_keeps_the_living_and_removes_the_rest() {
    as_daemon(
        "a_restarted_daemon_keeps_the_living_and_removes_the_rest",
        async || {
            let host = Host::new();
            let mut live = Vec::new();
            {
                let networks = host.networks();
                networks.recover(&[]).await.unwrap();
                for id in ["a", "b", "c"] {
                    live.push((
                        id.to_owned(),
                        networks.connect(&request(id, NetworkMode::Bridge)).await.unwrap(),
                    ));
                }
                networks.connect(&request("d", NetworkMode::None)).await.unwrap();
            }
            // Left by a daemon that was killed half way through.
            fs::write(host.exec_root().join("netns/half-made"), "").unwrap();
            let rules = inside(&host.namespace, || run("nft list ruleset"));
            let (_, dead) = live.remove(1);
            let server = serve(open(&live[1].1).as_fd(), address(&live[1].1));

            let networks = host.networks();
            networks.recover(&live).await.unwrap();
            networks.ready().await.unwrap();
            assert_eq!(inside(&host.namespace, || run("nft list ruleset")), rules);
            for id in ["b", "d", "half-made"] {
                assert!(!exists(&host.exec_root().join("netns").join(id)), "{id}");
            }
            let mut kept: Vec<_> = live
                .iter()
                .map(|(_, sandbox)| sandbox.endpoints[0].host_interface.clone())
                .collect();
            kept.sort();
            assert_eq!(veths(&host.namespace), kept);

            assert_eq!(ask(open(&live[0].1), server).unwrap(), "172.17.0.2");
            let next = networks
                .connect(&request("e", NetworkMode::Bridge))
                .await
                .unwrap();
            assert_eq!(address(&next), address(&dead));
            let next = networks
                .connect(&request("f", NetworkMode::Bridge))
                .await
                .unwrap();
            assert_eq!(address(&next), Ipv4Addr::new(172, 17, 0, 5));
            assert_eq!(next.endpoints[0].network_id, live[0].1.endpoints[0].network_id);
            for id in ["a", "c", "e", "f"] {
                networks.disconnect(id).await.unwrap();
            }
            host.assert_clean();
        },
    );
}

#[test]
fn a_failed_connect_leaves_nothing_and_the_next_works() {
    as_daemon("a_failed_connect_leaves_nothing_and_the_next_works", async || {
        let host = Host::new();
        let networks = host.networks();
        // The sandbox cannot be bound where a directory with something in it stands.
        let obstacle = host.exec_root().join("netns/c1");
        fs::create_dir_all(obstacle.join("full")).unwrap();
        let error = networks
            .connect(&request("c1", NetworkMode::Bridge))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), skiff_core::ErrorKind::System);
        assert!(error.to_string().contains("c1"), "{error}");
        fs::remove_dir_all(&obstacle).unwrap();
        host.assert_clean();

        let mut wrong = request("c1", NetworkMode::Bridge);
        wrong.mac_address = Some("01:00:5e:00:00:01".to_owned());
        let error = networks.connect(&wrong).await.unwrap_err();
        assert_eq!(error.kind(), skiff_core::ErrorKind::InvalidParameter);
        wrong.container_id = "../escape".to_owned();
        wrong.mac_address = None;
        assert_eq!(
            networks.connect(&wrong).await.unwrap_err().kind(),
            skiff_core::ErrorKind::InvalidParameter
        );
        host.assert_clean();

        let sandbox = networks
            .connect(&request("c1", NetworkMode::Bridge))
            .await
            .unwrap();
        assert_eq!(address(&sandbox), Ipv4Addr::new(172, 17, 0, 2));
        let error = networks
            .connect(&request("c1", NetworkMode::Bridge))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), skiff_core::ErrorKind::Conflict);
        networks.disconnect("c1").await.unwrap();
        host.assert_clean();
    });
}

#[test]
fn a_full_subnet_is_an_error_until_somebody_leaves() {
    as_daemon("a_full_subnet_is_an_error_until_somebody_leaves", async || {
        let host = Host::new();
        let mut config = host.config();
        config.bip = "10.9.8.1/30".parse().unwrap();
        let networks = BridgeNetworks::new(config).unwrap();
        let only = networks
            .connect(&request("c1", NetworkMode::Bridge))
            .await
            .unwrap();
        assert_eq!(address(&only), Ipv4Addr::new(10, 9, 8, 2));
        let error = networks
            .connect(&request("c2", NetworkMode::Bridge))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("no available IPv4 addresses on this network's address pools: bridge (")
        );
        networks.disconnect("c1").await.unwrap();
        networks
            .connect(&request("c2", NetworkMode::Bridge))
            .await
            .unwrap();
    });
}

#[test]
fn settings_arrive_and_change_with_the_next_start() {
    as_daemon("settings_arrive_and_change_with_the_next_start", async || {
        let host = Host::new();
        host.networks().ready().await.unwrap();
        let mut config = host.config();
        config.bip = "10.1.0.1/24".parse().unwrap();
        config.mtu = 9000;
        let networks = BridgeNetworks::new(config).unwrap();
        let mut asked = request("c1", NetworkMode::Bridge);
        asked.mac_address = Some("92:d0:c6:0a:29:33".to_owned());
        let sandbox = networks.connect(&asked).await.unwrap();
        assert_eq!(sandbox.endpoints[0].mac_address, "92:d0:c6:0a:29:33");
        let eth0 = inside(open(&sandbox), || run("ip addr show eth0"));
        for part in ["mtu 9000", "link/ether 92:d0:c6:0a:29:33", "inet 10.1.0.2/24"] {
            assert!(eth0.contains(part), "{part}: {eth0}");
        }
        let docker0 = inside(&host.namespace, || run("ip addr show docker0"));
        assert!(
            docker0.contains("inet 10.1.0.1/24") && !docker0.contains("172.17."),
            "{docker0}"
        );
        assert!(docker0.contains("mtu 9000"), "{docker0}");
    });
}

#[test]
fn a_disconnect_waits_for_its_connect_and_an_abandoned_connect_is_finished() {
    as_daemon(
        "a_disconnect_waits_for_its_connect_and_an_abandoned_connect_is_finished",
        async || {
            let host = Host::new();
            let networks = host.networks();
            for round in 0..20 {
                let id = format!("c{round}");
                let asked = request(&id, NetworkMode::Bridge);
                // Polled once, so that it is under way, then dropped like that of a client that went away.
                let mut connect = Box::pin(networks.connect(&asked));
                let _ = futures_util::poll!(&mut connect);
                drop(connect);
                loop {
                    networks.disconnect(&id).await.unwrap();
                    let entry = host.exec_root().join("netns").join(&id);
                    // Until the task has claimed the id there is nothing to wait for.
                    match networks.connect(&asked).await {
                        Ok(_) => {
                            networks.disconnect(&id).await.unwrap();
                            assert!(!exists(&entry));
                            break;
                        }
                        Err(error) => assert_eq!(error.kind(), skiff_core::ErrorKind::Conflict),
                    }
                }
            }
            host.assert_clean();
        },
    );
}
