//! IP tunnels, WireGuard and IPVS against a kernel that has them, this machine's or that of
//! a virtual machine, with `wg`, `ipvsadm` and traffic as witnesses.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

use std::process::Command;

use podwire_linux::namespace::NetworkNamespace;
use vm::{Feature, Guest};

#[test]
fn tunnels_wireguard_and_ipvs() {
    let report = Guest::new()
        .needs(Feature::Ipip)
        .needs(Feature::WireGuard)
        .needs(Feature::Ipvs)
        .program("wg")
        .program("ipvsadm")
        .run_cases("guest_")
        .unwrap_or_else(|error| panic!("{error}"));
    print!("{report}");
}

/// What a witness writes, run inside `namespace`.
fn witness(namespace: &NetworkNamespace, command: &str) -> String {
    let output = namespace
        .run(|| {
            let mut words = command.split_whitespace();
            Command::new(words.next().unwrap())
                .args(words)
                .output()
                .unwrap()
        })
        .unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Ties two namespaces by a veth pair with an end named `under` in each, with
/// an address of each family.
fn tie(near: &NetworkNamespace, far: &NetworkNamespace) {
    let far_path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        std::os::fd::AsRawFd::as_raw_fd(far)
    );
    witness(
        near,
        &format!("ip link add under type veth peer name under netns {far_path}"),
    );
    for (namespace, own) in [(near, 1), (far, 2)] {
        for command in [
            format!("ip address add 192.0.2.{own}/24 dev under"),
            format!("ip address add 2001:db8::{own}/64 dev under nodad"),
            "ip link set under up".to_owned(),
        ] {
            witness(namespace, &command);
        }
    }
}

mod guest_tunnel {
    use podwire_linux::link;
    use podwire_linux::tunnel::{self, Ipip, Tunnel};

    use super::*;

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn an_ip_in_ip_device_carries_packets_of_exactly_its_mtu_by_on_link_gateways() {
        let [near, far] = [0, 1].map(|_| NetworkNamespace::create().unwrap());
        tie(&near, &far);
        for (namespace, own, peer) in [(&near, 1, 2), (&far, 2, 1)] {
            let wanted = Tunnel::Ipip(Ipip {
                local: [192, 0, 2, own].into(),
                ttl: 64,
            });
            let mut socket = namespace.route_socket().unwrap();
            socket
                .execute(&tunnel::add("pwt", &wanted, 1480, None))
                .unwrap();
            let found = link::get(&mut socket, "pwt").unwrap().unwrap();
            assert_eq!((found.tunnel, found.mtu), (Some(wanted), 1480));
            let shown = witness(namespace, "ip -d link show pwt");
            let expected = format!("ipip remote any local 192.0.2.{own} ttl 64");
            assert!(shown.contains(&expected), "{shown}");
            for command in [
                "ip link set lo up".to_owned(),
                "ip link set pwt up".to_owned(),
                format!("ip address add 10.200.{own}.1/32 dev lo"),
                format!(
                    "ip route add 10.200.{peer}.0/24 via 192.0.2.{peer} dev pwt onlink \
                     src 10.200.{own}.1"
                ),
            ] {
                witness(namespace, &command);
            }
        }
        // 1480 bytes less the headers of IPv4 and ICMP.
        witness(&near, "ping -c 1 -w 30 -M do -s 1452 10.200.2.1");
    }
}

mod guest_wireguard {
    use std::io::Write;
    use std::process::Stdio;

    use ipnet::IpNet;
    use podwire_linux::wireguard::{Change, PrivateKey, PublicKey, Ranges, Settings, WireGuard};
    use rustix::io::Errno;

    use super::*;

    fn range(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// A namespace with a WireGuard device `wg0` that has a private key.
    fn device() -> (NetworkNamespace, WireGuard, PublicKey) {
        let namespace = NetworkNamespace::create().unwrap();
        witness(&namespace, "ip link add wg0 type wireguard");
        let mut wireguard = namespace.run(WireGuard::open).unwrap().unwrap();
        wireguard
            .configure(
                "wg0",
                &Settings {
                    private_key: Some(PrivateKey::generate().unwrap()),
                    ..Settings::default()
                },
            )
            .unwrap();
        let key = wireguard.device("wg0").unwrap().unwrap().public_key;
        (namespace, wireguard, key.unwrap())
    }

    fn key(number: u32) -> PublicKey {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        PublicKey(bytes)
    }

    fn set(key: PublicKey, endpoint: Option<&str>, ranges: Ranges) -> Change {
        Change::Set {
            key,
            endpoint: endpoint.map(|text| text.parse().unwrap()),
            keepalive: None,
            ranges,
        }
    }

    /// `wg show wg0 WHAT`: a line for each peer, as words.
    fn shown(namespace: &NetworkNamespace, what: &str) -> Vec<Vec<String>> {
        witness(namespace, &format!("wg show wg0 {what}"))
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect())
            .collect()
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn settings_are_those_wg_shows_and_what_is_not_named_stays() {
        let (namespace, mut wireguard, public) = device();
        let private = PrivateKey::generate().unwrap();
        let settings = Settings {
            private_key: Some(private.clone()),
            port: Some(51820),
            mark: Some(0x70),
        };
        wireguard.configure("wg0", &settings).unwrap();
        wireguard
            .configure(
                "wg0",
                &Settings {
                    mark: Some(0x71),
                    ..Settings::default()
                },
            )
            .unwrap();
        let device = wireguard.device("wg0").unwrap().unwrap();
        assert_eq!(device.name, "wg0");
        assert_eq!(device.private_key, Some(private));
        assert_eq!((device.port, device.mark), (51820, 0x71));
        assert_ne!(device.public_key, Some(public), "of the key before");
        assert!(device.peers.is_empty());
        let shown = |what: &str| shown(&namespace, what).concat().concat();
        assert_eq!(shown("listen-port"), "51820");
        assert_eq!(shown("fwmark"), "0x71");
        assert_eq!(shown("public-key"), device.public_key.unwrap().to_string());
        // The public key is the one that belongs to the private key.
        let mut pubkey = Command::new("wg")
            .arg("pubkey")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = pubkey.stdin.take().unwrap();
        stdin.write_all(shown("private-key").as_bytes()).unwrap();
        drop(stdin);
        let derived = pubkey.wait_with_output().unwrap().stdout;
        assert_eq!(
            String::from_utf8(derived).unwrap().trim(),
            device.public_key.unwrap().to_string()
        );
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn a_device_that_is_not_there_is_none_and_one_of_another_kind_is_refused() {
        let (namespace, mut wireguard, _) = device();
        assert_eq!(wireguard.device("wg1").unwrap(), None);
        witness(&namespace, "ip link add other type veth peer name peer");
        let error = wireguard.device("other").unwrap_err();
        assert_eq!(error.errno(), Some(Errno::OPNOTSUPP), "{error}");
        let error = wireguard.change("wg1", &[Change::Remove(key(1))]);
        assert!(error.unwrap_err().not_found());
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn peers_are_added_changed_and_removed_one_by_one() {
        let (namespace, mut wireguard, _) = device();
        let add = |ranges: &[&str]| Ranges::Add(ranges.iter().map(|text| range(text)).collect());
        wireguard
            .change(
                "wg0",
                &[
                    set(key(1), Some("192.0.2.1:51820"), add(&["10.200.1.0/24"])),
                    set(
                        key(2),
                        Some("[2001:db8::2]:51821"),
                        add(&["10.200.2.0/24", "fd00:200:0:2::/64"]),
                    ),
                    set(key(3), None, add(&[])),
                ],
            )
            .unwrap();
        assert_eq!(
            shown(&namespace, "allowed-ips"),
            [
                vec![key(1).to_string(), "10.200.1.0/24".into()],
                vec![
                    key(2).to_string(),
                    "10.200.2.0/24".into(),
                    "fd00:200:0:2::/64".into()
                ],
                vec![key(3).to_string(), "(none)".into()],
            ]
        );
        let before = wireguard.device("wg0").unwrap().unwrap();
        assert_eq!(
            before.peers[1].endpoint,
            Some("[2001:db8::2]:51821".parse().unwrap())
        );

        wireguard
            .change(
                "wg0",
                &[
                    // A range moves from one peer to another, a new end stays.
                    set(key(3), Some("192.0.2.3:9"), add(&["10.200.1.0/24"])),
                    Change::Set {
                        key: key(2),
                        endpoint: None,
                        keepalive: Some(25),
                        ranges: Ranges::Replace(vec![range("10.200.4.0/24")]),
                    },
                    Change::Remove(key(1)),
                    Change::Remove(key(9)),
                ],
            )
            .unwrap();
        let after = wireguard.device("wg0").unwrap().unwrap();
        let found: Vec<_> = after
            .peers
            .iter()
            .map(|peer| (peer.key, peer.endpoint, peer.keepalive, peer.ranges.clone()))
            .collect();
        let second = before.peers[1].endpoint;
        assert_eq!(
            found,
            [
                (key(2), second, 25, vec![range("10.200.4.0/24")]),
                (
                    key(3),
                    Some("192.0.2.3:9".parse().unwrap()),
                    0,
                    vec![range("10.200.1.0/24")]
                ),
            ]
        );
        assert_eq!(
            shown(&namespace, "allowed-ips"),
            [
                vec![key(2).to_string(), "10.200.4.0/24".into()],
                vec![key(3).to_string(), "10.200.1.0/24".into()],
            ]
        );
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn thousands_of_peers_and_of_one_peers_ranges_go_in_and_come_back_whole() {
        let (namespace, mut wireguard, _) = device();
        let host = |number: u32| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
            IpNet::new(address.into(), 32).unwrap()
        };
        let mut changes: Vec<Change> = (0..2000)
            .map(|number| {
                set(
                    key(number),
                    Some("192.0.2.1:51820"),
                    Ranges::Add(vec![host(number)]),
                )
            })
            .collect();
        let many: Vec<IpNet> = (10_000..13_000).map(host).collect();
        changes.push(set(key(5000), None, Ranges::Replace(many.clone())));
        wireguard.change("wg0", &changes).unwrap();
        let device = wireguard.device("wg0").unwrap().unwrap();
        let mut peers: Vec<_> = device.peers.iter().collect();
        peers.sort_by_key(|peer| peer.key);
        assert_eq!(peers.len(), 2001);
        for (number, peer) in (0..).zip(&peers[..2000]) {
            assert_eq!(
                (peer.key, &peer.ranges[..]),
                (key(number), &[host(number)][..])
            );
        }
        let mut found = peers[2000].ranges.clone();
        found.sort();
        assert_eq!(found, many);
        let shown = shown(&namespace, "allowed-ips");
        assert_eq!(shown.concat().len(), 2001 + 2000 + 3000);
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn two_devices_that_know_each_other_carry_both_families() {
        let (near, mut near_wireguard, near_key) = device();
        let (far, mut far_wireguard, far_key) = device();
        tie(&near, &far);
        for (namespace, own, peer, key, wireguard) in [
            (&near, 1, 2, far_key, &mut near_wireguard),
            (&far, 2, 1, near_key, &mut far_wireguard),
        ] {
            let settings = Settings {
                port: Some(51820),
                ..Settings::default()
            };
            wireguard.configure("wg0", &settings).unwrap();
            let endpoint = format!("192.0.2.{peer}:51820");
            let ranges = vec![
                range(&format!("10.200.{peer}.0/24")),
                range(&format!("fd00:200:0:{peer}::/64")),
            ];
            let change = set(key, Some(&endpoint), Ranges::Replace(ranges));
            wireguard.change("wg0", &[change]).unwrap();
            witness(
                namespace,
                &format!("ip address add 10.200.{own}.1/16 dev wg0"),
            );
            witness(
                namespace,
                &format!("ip address add fd00:200:0:{own}::1/48 dev wg0 nodad"),
            );
            witness(namespace, "ip link set wg0 up");
        }
        witness(&near, "ping -c 1 -w 30 10.200.2.1");
        witness(&near, "ping -c 1 -w 30 fd00:200:0:2::1");
        let peer = &near_wireguard.device("wg0").unwrap().unwrap().peers[0];
        assert!(peer.last_handshake.is_some());
        assert!(peer.received > 0 && peer.sent > 0, "{peer:?}");
    }
}

mod guest_ipvs {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::net::{IpAddr, TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use podwire_linux::ipvs::{
        Backend, Change, Destination, Forwarding, Frontend, Ipvs, Persistence, Protocol, Service,
        Timeouts,
    };
    use podwire_linux::netlink::Error;
    use rstest::rstest;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn frontend(protocol: Protocol, text: &str, port: u16) -> Frontend {
        Frontend {
            address: address(text),
            protocol,
            port,
        }
    }

    fn backend(text: &str, port: u16) -> Backend {
        Backend {
            address: address(text),
            port,
        }
    }

    fn fresh() -> (NetworkNamespace, Ipvs) {
        let namespace = NetworkNamespace::create().unwrap();
        witness(&namespace, "ip link set lo up");
        let ipvs = namespace.run(Ipvs::open).unwrap().unwrap();
        (namespace, ipvs)
    }

    fn apply(ipvs: &mut Ipvs, changes: &[Change]) {
        for outcome in ipvs.apply(changes).unwrap() {
            outcome.unwrap();
        }
    }

    /// What `ipvsadm` would need to make it again, sorted.
    fn saved(namespace: &NetworkNamespace) -> Vec<String> {
        let mut lines: Vec<String> = witness(namespace, "ipvsadm --save --numeric")
            .lines()
            .map(|line| line.trim().to_owned())
            .collect();
        lines.sort();
        lines
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn services_of_both_families_and_all_protocols_are_those_ipvsadm_shows() {
        let (namespace, mut ipvs) = fresh();
        let mut services = vec![
            Service::new(frontend(Protocol::Tcp, "10.96.0.1", 80), "rr"),
            Service {
                persistence: Some(Persistence::of_clients(10800, address("10.96.0.1"))),
                ..Service::new(frontend(Protocol::Tcp, "10.96.0.1", 443), "wlc")
            },
            Service {
                persistence: Some(Persistence {
                    seconds: 60,
                    prefix_length: 24,
                }),
                ..Service::new(frontend(Protocol::Udp, "10.96.0.1", 53), "lc")
            },
            Service {
                one_packet: true,
                ..Service::new(frontend(Protocol::Udp, "10.96.0.2", 53), "rr")
            },
            Service {
                fallback: true,
                by_port: true,
                ..Service::new(frontend(Protocol::Sctp, "10.96.0.1", 38412), "sh")
            },
            Service {
                persistence: Some(Persistence {
                    seconds: 30,
                    prefix_length: 64,
                }),
                ..Service::new(frontend(Protocol::Tcp, "fd00:96::1", 80), "wlc")
            },
        ];
        let changes: Vec<Change> = services.iter().cloned().map(Change::AddService).collect();
        apply(&mut ipvs, &changes);
        assert_eq!(
            saved(&namespace),
            [
                "-A --sctp-service 10.96.0.1:38412 -s sh -b sh-fallback,sh-port",
                "-A -t 10.96.0.1:443 -s wlc -p 10800",
                "-A -t 10.96.0.1:80 -s rr",
                "-A -t [fd00:96::1]:80 -s wlc -p 30 -M 64",
                "-A -u 10.96.0.1:53 -s lc -p 60 -M 255.255.255.0",
                "-A -u 10.96.0.2:53 -s rr -o",
            ]
        );
        let found = |ipvs: &mut Ipvs| {
            let mut found: Vec<Service> = ipvs
                .services()
                .unwrap()
                .into_iter()
                .map(|state| state.service)
                .collect();
            found.sort_by_key(|service| service.frontend);
            found
        };
        services.sort_by_key(|service| service.frontend);
        assert_eq!(found(&mut ipvs), services);

        // Changed in place, and removed one by one.
        services[0].scheduler = "lc".to_owned();
        services[0].persistence = None;
        let gone = services.pop().unwrap();
        apply(
            &mut ipvs,
            &[
                Change::EditService(services[0].clone()),
                Change::DeleteService(gone.frontend),
            ],
        );
        assert_eq!(found(&mut ipvs), services);
        let others = NetworkNamespace::create().unwrap();
        assert!(
            others
                .run(Ipvs::open)
                .unwrap()
                .unwrap()
                .services()
                .unwrap()
                .is_empty()
        );
    }

    #[rstest]
    #[case("10.96.0.1", "10.200.0.2", "10.200.1.2")]
    #[case("fd00:96::1", "fd00:200::2", "fd00:200:0:1::2")]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn destinations_are_added_weighed_and_removed(
        #[case] service: &str,
        #[case] one: &str,
        #[case] two: &str,
    ) {
        let (namespace, mut ipvs) = fresh();
        let frontend = frontend(Protocol::Tcp, service, 80);
        let [one, two] = [one, two].map(|text| backend(text, 8080));
        apply(
            &mut ipvs,
            &[
                Change::AddService(Service::new(frontend, "wrr")),
                Change::AddDestination(frontend, Destination::new(one, 1)),
                Change::AddDestination(
                    frontend,
                    Destination {
                        forwarding: Forwarding::Tunnel,
                        ..Destination::new(two, 65535)
                    },
                ),
            ],
        );
        let address = frontend.to_string().replace("TCP ", "");
        let line = |backend: Backend, rest: &str| format!("-a -t {address} -r {backend} {rest}");
        let service_line = format!("-A -t {address} -s wrr");
        let mut expected = [
            service_line.clone(),
            line(one, "-m -w 1"),
            line(two, "-i -w 65535 --tun-type ipip"),
        ];
        expected.sort();
        assert_eq!(saved(&namespace), expected);
        apply(
            &mut ipvs,
            &[
                Change::EditDestination(frontend, Destination::new(one, 0)),
                Change::DeleteDestination(frontend, two),
            ],
        );
        assert_eq!(saved(&namespace), [service_line, line(one, "-m -w 0")]);
        let states = ipvs.destinations(&frontend).unwrap();
        assert_eq!(states.len(), 1);
        assert_eq!(states[0].destination, Destination::new(one, 0));
        let absent = Frontend {
            port: 81,
            ..frontend
        };
        assert!(ipvs.destinations(&absent).unwrap().is_empty());
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn each_change_has_its_own_outcome_and_a_missing_scheduler_names_its_module() {
        let (namespace, mut ipvs) = fresh();
        let one = frontend(Protocol::Tcp, "10.96.0.1", 80);
        let two = frontend(Protocol::Tcp, "10.96.0.2", 80);
        let to = backend("10.200.0.2", 80);
        let outcomes = ipvs
            .apply(&[
                Change::AddService(Service::new(one, "rr")),
                Change::AddService(Service::new(one, "rr")),
                Change::AddService(Service::new(two, "noneofthese")),
                Change::DeleteService(two),
                Change::AddDestination(two, Destination::new(to, 1)),
                Change::DeleteDestination(one, to),
                Change::AddDestination(one, Destination::new(to, 1)),
                Change::AddDestination(one, Destination::new(to, 1)),
            ])
            .unwrap();
        assert!(outcomes[0].is_ok());
        assert!(outcomes[1].as_ref().unwrap_err().already_exists());
        let missing = outcomes[2].as_ref().unwrap_err();
        assert!(matches!(missing, Error::Missing { .. }), "{missing}");
        assert_eq!(
            missing.to_string(),
            "cannot add the IPVS service TCP 10.96.0.2:80: this kernel has no IPVS scheduler \
             noneofthese; load the module ip_vs_noneofthese (`modprobe ip_vs_noneofthese`) or \
             run a kernel that has it"
        );
        for at in [3, 4, 5] {
            assert!(outcomes[at].as_ref().unwrap_err().not_found(), "{at}");
        }
        assert!(outcomes[6].is_ok());
        assert!(outcomes[7].as_ref().unwrap_err().already_exists());
        assert_eq!(saved(&namespace).len(), 2);
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn a_thousand_services_go_in_at_once_and_all_are_listed() {
        let (namespace, mut ipvs) = fresh();
        let changes: Vec<Change> = (1..=1000)
            .flat_map(|port| {
                let frontend = frontend(Protocol::Udp, "10.96.0.1", port);
                let destination = Destination::new(backend("10.200.0.2", port), 1);
                [
                    Change::AddService(Service::new(frontend, "rr")),
                    Change::AddDestination(frontend, destination),
                ]
            })
            .collect();
        apply(&mut ipvs, &changes);
        assert_eq!(ipvs.services().unwrap().len(), 1000);
        assert_eq!(saved(&namespace).len(), 2000);
    }

    #[test]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn time_outs_are_the_namespaces_own() {
        let (namespace, mut ipvs) = fresh();
        let wanted = Timeouts {
            tcp: 600,
            tcp_fin: 30,
            udp: 45,
        };
        ipvs.set_timeouts(&wanted).unwrap();
        assert_eq!(ipvs.timeouts().unwrap(), wanted);
        let shown = witness(&namespace, "ipvsadm --list --timeout");
        assert_eq!(shown.trim(), "Timeout (tcp tcpfin udp): 600 30 45");
    }

    /// Servers on `backends` that answer with their own address, and the count
    /// of answers from each for `connections` connections to `frontend`.
    fn answers(
        namespace: &NetworkNamespace,
        frontend: Frontend,
        connections: usize,
    ) -> BTreeMap<String, usize> {
        let mut answers = BTreeMap::new();
        for _ in 0..connections {
            let answer = namespace
                .run(|| {
                    let mut stream = TcpStream::connect((frontend.address, frontend.port)).unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).unwrap();
                    text
                })
                .unwrap();
            *answers.entry(answer).or_default() += 1;
        }
        answers
    }

    fn serve(namespace: &NetworkNamespace, backend: Backend) {
        let listener = namespace
            .run(|| TcpListener::bind((backend.address, backend.port)).unwrap())
            .unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let name = stream.local_addr().unwrap().ip().to_string();
                std::io::Write::write_all(&mut stream, name.as_bytes()).unwrap();
            }
        });
    }

    #[rstest]
    #[case("10.96.0.1", "10.200.0.2", "10.200.1.2", 32)]
    #[case("fd00:96::1", "fd00:200::2", "fd00:200:0:1::2", 128)]
    #[ignore = "run by tunnels_wireguard_and_ipvs"]
    fn connections_are_balanced_counted_kept_and_weighed_out(
        #[case] service: &str,
        #[case] one: &str,
        #[case] two: &str,
        #[case] length: u8,
    ) {
        let (namespace, mut ipvs) = fresh();
        for address in [service, one, two] {
            let nodad = if length == 128 { "nodad" } else { "" };
            witness(
                &namespace,
                &format!("ip address add {address}/{length} dev lo {nodad}"),
            );
        }
        let frontend = frontend(Protocol::Tcp, service, 80);
        let backends = [one, two].map(|text| backend(text, 8080));
        let mut changes = vec![Change::AddService(Service::new(frontend, "rr"))];
        for backend in backends {
            serve(&namespace, backend);
            changes.push(Change::AddDestination(
                frontend,
                Destination::new(backend, 1),
            ));
        }
        apply(&mut ipvs, &changes);

        let found = answers(&namespace, frontend, 10);
        let halves = BTreeMap::from([(one.to_owned(), 5), (two.to_owned(), 5)]);
        assert_eq!(found, halves, "round robin");
        for state in ipvs.destinations(&frontend).unwrap() {
            assert_eq!(state.active + state.inactive, 5, "{state:?}");
        }
        // The kernel adds its counters up every two seconds and tells nobody.
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let counters = ipvs.services().unwrap()[0].counters;
            let each: Vec<u64> = ipvs
                .destinations(&frontend)
                .unwrap()
                .iter()
                .map(|state| state.counters.connections)
                .collect();
            if counters.connections == 10 && each == [5, 5] {
                assert!(counters.packets_in >= 30, "{counters:?}");
                assert!(counters.packets_out >= 20, "{counters:?}");
                assert!(
                    counters.bytes_in >= 1200 && counters.bytes_out >= 800,
                    "{counters:?}"
                );
                break;
            }
            assert!(Instant::now() < until, "{counters:?} {each:?}");
            std::thread::sleep(Duration::from_millis(100));
        }

        // Nothing new to one of weight 0.
        let out = Change::EditDestination(frontend, Destination::new(backends[0], 0));
        apply(&mut ipvs, &[out]);
        assert_eq!(
            answers(&namespace, frontend, 4),
            BTreeMap::from([(two.to_owned(), 4)])
        );

        // With persistence a client stays where it was first.
        let back = Change::EditDestination(frontend, Destination::new(backends[0], 1));
        let keep = Change::EditService(Service {
            persistence: Some(Persistence::of_clients(600, frontend.address)),
            ..Service::new(frontend, "rr")
        });
        apply(&mut ipvs, &[back, keep]);
        assert_eq!(answers(&namespace, frontend, 6).len(), 1);
        let persistent: u32 = ipvs
            .destinations(&frontend)
            .unwrap()
            .iter()
            .map(|state| state.persistent)
            .sum();
        assert_eq!(persistent, 1);
    }
}
