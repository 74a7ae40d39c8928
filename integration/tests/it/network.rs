//! `--network none`, `host` and the default bridge with its way out.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use crate::harness::{Engine, machine_address, registry, require, skipped};

#[test]
fn none_has_loopback_only() {
    let engine = Engine::with_busybox("overlay2");
    let links = engine
        .busybox(
            &["--network", "none"],
            &["sh", "-c", "ls /sys/class/net; ip -4 -o addr | awk '{print $4}'"],
        )
        .ok();
    assert_eq!(links, "lo\n127.0.0.1/8", "loopback, and it is up");
    let c = engine.detached(&["--network", "none"], &["sleep", "1000"]);
    assert_eq!(
        engine.inspect(&c, "{{.HostConfig.NetworkMode}} [{{.NetworkSettings.IPAddress}}]"),
        "none []"
    );
}

#[test]
fn host_is_the_host_s_own_network() {
    require!(Engine::own(), "compares namespaces on this machine");
    let engine = Engine::with_busybox("overlay2");
    let host = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(
        engine
            .busybox(&["--network", "host"], &["readlink", "/proc/self/ns/net"])
            .ok(),
        host
    );
    assert_ne!(engine.busybox(&[], &["readlink", "/proc/self/ns/net"]).ok(), host);
    // A server on the host's loopback is reachable, which is what people use it for.
    let address = registry().address;
    let answer = engine
        .busybox(
            &["--network", "host"],
            &["wget", "-qO-", &format!("http://{address}/v2/_catalog")],
        )
        .ok();
    assert!(answer.contains("busybox"), "{answer}");
}

#[test]
fn containers_on_the_bridge_reach_each_other() {
    let engine = Engine::with_busybox("overlay2");
    let server = engine.detached(
        &["--name", "server"],
        &[
            "sh",
            "-c",
            "echo hello >/tmp/index.html; exec httpd -f -p 80 -h /tmp",
        ],
    );
    let address = engine.inspect(&server, "{{.NetworkSettings.IPAddress}}");
    assert!(address.starts_with("172.17.0."), "{address}");
    engine
        .busybox(&[], &["ping", "-c", "1", "-W", "5", &address])
        .run()
        .code(0);
    let get = format!("until wget -qO- http://{address}/; do usleep 20000; done");
    assert_eq!(engine.busybox(&[], &["sh", "-c", &get]).ok(), "hello");
    let inside = engine
        .busybox(
            &[],
            &[
                "sh",
                "-c",
                "ip -4 -o addr show eth0 | awk '{print $4}'; ip route | grep default",
            ],
        )
        .ok();
    assert!(
        inside.contains("/16") && inside.contains("default via 172.17.0.1 dev eth0"),
        "{inside}"
    );
    let gateway = engine.inspect(&server, "{{.NetworkSettings.Networks.bridge.Gateway}}");
    assert_eq!(gateway, "172.17.0.1");
    engine
        .busybox(&[], &["ping", "-c", "1", "-W", "5", &gateway])
        .run()
        .code(0);
}

#[test]
fn addresses_are_unique_and_come_back() {
    let engine = Engine::with_busybox("overlay2");
    let mut addresses = std::collections::BTreeSet::new();
    let ids: Vec<_> = (0..8).map(|_| engine.detached(&[], &["sleep", "1000"])).collect();
    for id in &ids {
        addresses.insert(engine.inspect(id, "{{.NetworkSettings.IPAddress}}"));
    }
    assert_eq!(addresses.len(), ids.len(), "{addresses:?}");
    for id in &ids {
        engine.docker(["rm", "-f", id]).ok();
    }
    let again = engine.detached(&[], &["sleep", "1000"]);
    let address = engine.inspect(&again, "{{.NetworkSettings.IPAddress}}");
    assert!(address.starts_with("172.17.0."), "{address}");
}

#[test]
fn networks_that_are_not_built_yet_say_so() {
    require!(Engine::own(), "dockerd can do it");
    let engine = Engine::with_busybox("overlay2");
    engine.detached(&["--name", "first"], &["sleep", "1000"]);
    let done = engine
        .busybox(&["--network", "container:first"], &["true"])
        .run()
        .code(125);
    assert!(done.stderr.contains("not supported"), "{done}");
    assert_eq!(
        engine.docker(["ps", "-aq"]).ok().lines().count(),
        1,
        "nothing is left of it"
    );
}

#[test]
fn there_is_a_way_out_and_no_way_to_the_host_s_loopback() {
    require!(Engine::own(), "starts a server next to the daemon");
    let Some(address) = machine_address() else {
        return skipped("the machine has no address besides loopback");
    };
    let engine = Engine::with_busybox("overlay2");
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let n = stream.read(&mut request).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the host").unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    let url = format!("http://{address}:{port}/");
    assert_eq!(
        engine.busybox(&[], &["timeout", "20", "wget", "-qO-", &url]).ok(),
        "from the host"
    );
    assert!(server.join().unwrap().starts_with("GET / "));

    // slirp4netns and pasta can map the host's loopback to an address of their network; that door stays shut.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    for address in ["10.0.2.2", "172.17.0.1", "127.0.0.1"] {
        engine
            .busybox(
                &[],
                &[
                    "timeout",
                    "2",
                    "wget",
                    "-qO-",
                    &format!("http://{address}:{port}/"),
                ],
            )
            .run()
            .fails();
    }
}

#[test]
fn names_are_given_to_resolve_with() {
    let engine = Engine::with_busybox("overlay2");
    let file = |options: &[&str], path| engine.busybox(options, &["cat", path]).ok();
    let hosts = file(&["--add-host", "db:10.1.2.3", "-h", "me"], "/etc/hosts");
    assert!(
        hosts.contains("127.0.0.1\tlocalhost") && hosts.contains("10.1.2.3\tdb"),
        "{hosts}"
    );
    assert!(
        hosts
            .lines()
            .any(|line| line.starts_with("172.17.") && line.ends_with("\tme")),
        "{hosts}"
    );
    let resolv = file(
        &[
            "--dns",
            "192.0.2.53",
            "--dns-search",
            "example.org",
            "--dns-option",
            "ndots:2",
        ],
        "/etc/resolv.conf",
    );
    for line in ["nameserver 192.0.2.53", "search example.org", "options ndots:2"] {
        assert!(resolv.lines().any(|l| l == line), "{line}: {resolv}");
    }
    assert!(
        file(&[], "/etc/resolv.conf").contains("nameserver "),
        "some name server is there"
    );
}
