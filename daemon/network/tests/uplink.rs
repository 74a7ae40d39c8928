//! The way out of the bridge's namespace, with the real programs, as an ordinary user, on a host made for the test.
//!
//! The host has an interface with 192.0.2.10, which is what "the outside" means here: an address that is not
//! loopback, reached through the host's network stack. /dev/net/tun must be accessible.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests fail by panicking and print measurements"
)]

mod common;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use common::*;
use skiff_core::network::{NetworkMode, Networks};
use skiff_network::{BridgeNetworks, NetworkConfig, UplinkChoice, UplinkPrograms};

const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Where the programs answer DNS queries.
const FORWARDER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// What stands for the host's loopback when that is open.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Ports on the host: one on every address, one on loopback only.
const OPEN: u16 = 8080;
const LOOPBACK: u16 = 8081;

/// Runs as root of the host's namespace: interface, listeners, and a resolver on loopback.
fn make_host() -> Box<dyn std::any::Any> {
    run("ip link set lo up");
    run("ip link add outside0 type veth peer name outside1");
    run("ip addr add 192.0.2.10/24 dev outside0");
    run("ip link set outside0 up");
    run("ip link set outside1 up");
    run("ip route add default via 192.0.2.1 dev outside0");
    answer(TcpListener::bind((Ipv4Addr::UNSPECIFIED, OPEN)).unwrap());
    answer(TcpListener::bind((Ipv4Addr::LOCALHOST, LOOPBACK)).unwrap());

    let directory = tempfile::tempdir().unwrap();
    let resolv_conf = directory.path().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    run(&format!(
        "mount --bind {} /etc/resolv.conf",
        resolv_conf.display()
    ));
    let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 512];
        loop {
            let (length, from) = resolver.recv_from(&mut query).unwrap();
            // The query comes back marked as an answer: enough to see that it got here.
            query[2] |= 0x80;
            resolver.send_to(&query[..length], from).unwrap();
        }
    });
    Box::new(directory)
}

fn config(host: &Host, choice: UplinkChoice) -> NetworkConfig {
    let mut config = host.config();
    config.uplink = choice;
    config.programs = UplinkPrograms::find("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    config
}

/// The recorded process of the uplink.
fn pid(host: &Host) -> Option<u32> {
    let text = fs::read_to_string(host.exec_root().join("uplink.json")).ok()?;
    let process = text.split("\"process\":\"").nth(1)?;
    process.split(' ').next()?.parse().ok()
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn pss_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn to(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address, port).into()
}

/// The steps every program must pass.
async fn passes(choice: UplinkChoice) {
    let host = Host::new();
    let networks = BridgeNetworks::new(config(&host, choice)).unwrap();
    networks.recover(&[]).await.unwrap();
    networks.ready().await.unwrap();
    assert_eq!(pid(&host), None, "nobody needs it yet");
    networks
        .connect(&request("lonely", NetworkMode::None))
        .await
        .unwrap();
    assert_eq!(pid(&host), None, "a container without network does not need it");

    let start = Instant::now();
    let sandbox = networks
        .connect(&request("c1", NetworkMode::Bridge))
        .await
        .unwrap();
    println!("{choice:?}: first connect {:?}", start.elapsed());
    let first = pid(&host).unwrap();
    assert!(
        sandbox.resolv_conf.contains("\nnameserver 10.0.2.3\n"),
        "{}",
        sandbox.resolv_conf
    );
    println!("{choice:?}: {} KiB PSS", pss_kib(first));

    let inside_it = open(&sandbox);
    ask(&inside_it, to(OUTSIDE, OPEN)).unwrap();
    // The host's loopback is closed, on every address that could lead there.
    for address in [
        GATEWAY,
        FORWARDER,
        Ipv4Addr::new(10, 0, 2, 100),
        Ipv4Addr::new(172, 17, 0, 1),
    ] {
        for port in [OPEN, LOOPBACK] {
            let answer = ask_within(&inside_it, to(address, port), Duration::from_millis(300));
            assert!(answer.is_err(), "{address}:{port} answered {answer:?}");
        }
    }
    // Neither does the namespace itself reach it through its own loopback (pasta's splice).
    assert!(
        ask_within(
            &host.namespace,
            to(Ipv4Addr::LOCALHOST, LOOPBACK),
            Duration::from_millis(300)
        )
        .is_err()
    );
    resolve(&inside_it, FORWARDER);

    // A second container shares it; a restarted daemon takes it over.
    let second = networks
        .connect(&request("c2", NetworkMode::Bridge))
        .await
        .unwrap();
    assert_eq!(pid(&host), Some(first));
    drop(networks);
    let networks = BridgeNetworks::new(config(&host, choice)).unwrap();
    networks
        .recover(&[("c2".to_owned(), second.clone())])
        .await
        .unwrap();
    networks.ready().await.unwrap();
    assert!(alive(first));
    assert_eq!(pid(&host), Some(first));
    ask(open(&second), to(OUTSIDE, OPEN)).unwrap();

    // Killed, it comes back; `ready` does not wait for that, the link does.
    kill(first);
    let again = wait_for("another uplink", || {
        pid(&host).filter(|&pid| pid != first && alive(pid))
    });
    wait_for("its interface", || {
        inside(&host.namespace, interfaces)
            .contains(&"tap0".to_owned())
            .then_some(())
    });
    wait_for("the way out", || {
        ask_within(open(&second), to(OUTSIDE, OPEN), Duration::from_millis(200)).ok()
    });

    networks.shut_down().await;
    assert!(alive(again), "a container needs it");
    networks.disconnect("c2").await.unwrap();
    networks.shut_down().await;
    wait_for("its end", || (!alive(again)).then_some(()));
    for name in ["uplink.json", "uplink.netns", "uplink.pid"] {
        assert!(!exists(&host.exec_root().join(name)), "{name}");
    }
    wait_for("the end of tap0", || {
        (!inside(&host.namespace, interfaces).contains(&"tap0".to_owned())).then_some(())
    });
    host.assert_clean();
}

/// Asks the forwarder something and checks that the host's resolver saw it.
fn resolve(namespace: impl AsFd, forwarder: Ipv4Addr) {
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    let answer = inside(namespace, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(query, (IpAddr::V4(forwarder), 53)).unwrap();
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).unwrap();
        answer[..length].to_vec()
    });
    assert_eq!(answer[..2], query[..2]);
    assert_eq!(answer[2] & 0x80, 0x80);
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Polls what has no event to wait for: processes that are not ours.
fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "no sign of {what}");
        std::thread::yield_now();
    }
}

#[test]
fn slirp4netns_leads_out_and_not_to_loopback() {
    as_daemon_on_own_host(
        "slirp4netns_leads_out_and_not_to_loopback",
        make_host,
        async || {
            passes(UplinkChoice::Slirp4netns).await;
        },
    );
}

#[test]
fn pasta_leads_out_and_not_to_loopback() {
    as_daemon_on_own_host("pasta_leads_out_and_not_to_loopback", make_host, async || {
        passes(UplinkChoice::Pasta).await;
    });
}

#[test]
fn the_hosts_loopback_can_be_opened() {
    as_daemon_on_own_host("the_hosts_loopback_can_be_opened", make_host, async || {
        for choice in [UplinkChoice::Slirp4netns, UplinkChoice::Pasta] {
            let host = Host::new();
            let mut config = config(&host, choice);
            config.host_loopback = true;
            let networks = BridgeNetworks::new(config).unwrap();
            let sandbox = networks
                .connect(&request("c1", NetworkMode::Bridge))
                .await
                .unwrap();
            ask(open(&sandbox), to(GATEWAY, LOOPBACK)).unwrap();
            networks.disconnect("c1").await.unwrap();
            networks.shut_down().await;
        }
    });
}

#[test]
fn slirp4netns_is_preferred_and_ends_with_its_lifeline() {
    as_daemon_on_own_host(
        "slirp4netns_is_preferred_and_ends_with_its_lifeline",
        make_host,
        async || {
            let host = Host::new();
            let (lifeline, holder) = std::io::pipe().unwrap();
            let mut config = config(&host, UplinkChoice::Automatic);
            config.lifeline = Some(lifeline.into());
            let networks = BridgeNetworks::new(config).unwrap();
            networks
                .connect(&request("c1", NetworkMode::Bridge))
                .await
                .unwrap();
            let uplink = pid(&host).unwrap();
            let command_line = fs::read_to_string(format!("/proc/{uplink}/cmdline")).unwrap();
            assert!(command_line.starts_with("slirp4netns["), "{command_line}");
            // The daemon is gone first, then all that held the namespace.
            std::mem::forget(networks);
            drop(holder);
            wait_for("its end", || (!alive(uplink)).then_some(()));
        },
    );
}

#[test]
fn an_unrecorded_uplink_of_a_killed_daemon_is_replaced() {
    as_daemon_on_own_host(
        "an_unrecorded_uplink_of_a_killed_daemon_is_replaced",
        make_host,
        async || {
            for choice in [UplinkChoice::Slirp4netns, UplinkChoice::Pasta] {
                let host = Host::new();
                let networks = BridgeNetworks::new(config(&host, choice)).unwrap();
                networks
                    .connect(&request("c1", NetworkMode::Bridge))
                    .await
                    .unwrap();
                let stray = pid(&host).unwrap();
                drop(networks);
                fs::remove_file(host.exec_root().join("uplink.json")).unwrap();

                let networks = BridgeNetworks::new(config(&host, choice)).unwrap();
                networks.recover(&[]).await.unwrap();
                let sandbox = networks
                    .connect(&request("c2", NetworkMode::Bridge))
                    .await
                    .unwrap();
                assert_ne!(pid(&host).unwrap(), stray);
                wait_for("the end of the stray", || (!alive(stray)).then_some(()));
                ask(open(&sandbox), to(OUTSIDE, OPEN)).unwrap();
                networks.disconnect("c2").await.unwrap();
                networks.shut_down().await;
            }
        },
    );
}

#[test]
fn an_idle_uplink_ends_after_a_while() {
    as_daemon_on_own_host("an_idle_uplink_ends_after_a_while", make_host, async || {
        // A runtime of one thread, because only its clock can be moved.
        let idle = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let host = Host::new();
                let networks = BridgeNetworks::new(config(&host, UplinkChoice::Slirp4netns)).unwrap();
                networks
                    .connect(&request("c1", NetworkMode::Bridge))
                    .await
                    .unwrap();
                let uplink = pid(&host).unwrap();
                networks.disconnect("c1").await.unwrap();
                tokio::task::yield_now().await;
                tokio::time::pause();
                tokio::time::advance(Duration::from_secs(30)).await;
                networks
                    .connect(&request("c2", NetworkMode::Bridge))
                    .await
                    .unwrap();
                tokio::time::advance(Duration::from_secs(120)).await;
                tokio::task::yield_now().await;
                assert_eq!(pid(&host), Some(uplink), "c2 needs it");
                networks.disconnect("c2").await.unwrap();
                tokio::task::yield_now().await;
                tokio::time::advance(Duration::from_secs(61)).await;
                while alive(uplink) {
                    tokio::task::yield_now().await;
                }
            });
        };
        std::thread::scope(|scope| scope.spawn(idle).join().unwrap());
    });
}

#[test]
fn a_program_that_fails_costs_the_way_out_and_nothing_else() {
    as_daemon_on_own_host(
        "a_program_that_fails_costs_the_way_out_and_nothing_else",
        make_host,
        async || {
            let host = Host::new();
            let mut config = config(&host, UplinkChoice::Automatic);
            config.programs = UplinkPrograms {
                slirp4netns: Some("/bin/false".into()),
                pasta: Some(Path::new("/nonexistent").into()),
            };
            let networks = BridgeNetworks::new(config).unwrap();
            let first = networks
                .connect(&request("c1", NetworkMode::Bridge))
                .await
                .unwrap();
            let second = networks
                .connect(&request("c2", NetworkMode::Bridge))
                .await
                .unwrap();
            let server = serve(open(&second).as_fd(), address(&second));
            assert_eq!(ask(open(&first), server).unwrap(), "172.17.0.2");
            assert_eq!(pid(&host), None);
            for id in ["c1", "c2"] {
                networks.disconnect(id).await.unwrap();
            }
            networks.shut_down().await;
            host.assert_clean();
        },
    );
}
