//! UDP clients that keep their source port, so that conntrack takes all they send
//! for one conversation, while the endpoints of the Service change.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::rows::plan::{PLANS, Plan, facts, web};
use crate::rows::refusal_may_follow;
use crate::rows::rule::{Caller, Policy, Target};
use crate::world::{Attach, Space, World, slice};
use podwire_services::{Family, Proxy, ProxySettings};

const AGAIN: Duration = Duration::from_millis(500);
/// Datagrams may be lost while things change; so many in a row are too many.
const TRIES: usize = 10;

/// Two pods serve at two ports, the third asks.
struct Stage {
    world: World,
    proxy: Proxy,
}

struct Client {
    what: String,
    socket: UdpSocket,
}

fn serve(space: &Space, name: &'static str, address: &str, port: u16) {
    let address: IpAddr = address.parse().expect("an address");
    let socket = space
        .namespace
        .run(|| UdpSocket::bind((address, port)))
        .expect("entered")
        .expect("free port");
    std::thread::spawn(move || {
        let mut buffer = [0; 8];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name}:{port}").as_bytes(), peer);
        }
    });
}

impl Stage {
    fn new(settings: ProxySettings) -> Self {
        let world = World::with(Attach::Routed, 3);
        world.node.set("net/ipv4/icmp_ratelimit", "0");
        world.node.set("net/ipv6/icmp/ratelimit", "0");
        for plan in &PLANS {
            let (v6, node) = match plan.family {
                Family::V4 => ("", plan.node),
                Family::V6 => ("-6 ", plan.node),
            };
            for to in [plan.cluster, plan.load_balancer, plan.external] {
                world.outside.ip(&format!("{v6}route add {to} via {node}"));
            }
            for port in [8080, 8081] {
                serve(&world.pods[0], "pod0", &(plan.pod)(0), port);
                serve(&world.pods[1], "pod1", &(plan.pod)(1), port);
            }
        }
        let mut proxy = world
            .node
            .namespace
            .run(|| Proxy::start_as(&settings, facts()))
            .expect("entered")
            .expect("everything it needs is here");
        proxy.service_changed(web(Policy::Cluster));
        Self { world, proxy }
    }

    fn endpoints(&mut self, pods: &[usize], port: i32) {
        for (plan, name) in PLANS.iter().zip(["web-4", "web-6"]) {
            let list: Vec<String> = pods.iter().map(|pod| (plan.pod)(*pod)).collect();
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            self.proxy
                .endpoint_slice_changed(&slice("web", name, &list, port));
        }
        self.proxy.sync().expect("the kernel takes it");
    }

    /// One at every kind of address, of each family, from each place.
    fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for plan in &PLANS {
            for target in Target::ALL {
                for caller in [Caller::Pod, Caller::Node, Caller::Outside] {
                    clients.push(self.client(plan, target, caller));
                }
            }
        }
        clients
    }

    fn client(&self, plan: &Plan, target: Target, caller: Caller) -> Client {
        let (address, port) = plan.target(target);
        let to = SocketAddr::new(address.parse().expect("a literal"), port);
        let any: IpAddr = match plan.family {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let space = match caller {
            Caller::Pod | Caller::Endpoint => &self.world.pods[2],
            Caller::Node => &self.world.node,
            Caller::Outside => &self.world.outside,
        };
        let socket = space
            .namespace
            .run(|| {
                let socket = UdpSocket::bind((any, 0))?;
                socket.set_read_timeout(Some(AGAIN))?;
                socket.connect(to)?;
                std::io::Result::Ok(socket)
            })
            .expect("entered")
            .expect("a port and a route");
        Client {
            what: format!("{caller:?} to {target:?} {to}"),
            socket,
        }
    }
}

impl Client {
    fn ask(&self) -> std::io::Result<String> {
        refusal_may_follow(self.socket.send(b"who"))?;
        let mut buffer = [0; 64];
        let length = self.socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    fn is_answered_by(&self, name: &str, when: &str) {
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            match self.ask() {
                Ok(answer) if answer == name => return,
                other => seen.push(other),
            }
        }
        panic!("{when}: {}: {name} does not answer: {seen:?}", self.what);
    }

    fn is_refused(&self) {
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            match self.ask() {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                other => seen.push(other),
            }
        }
        panic!("{}: not refused: {seen:?}", self.what);
    }
}

/// Every client goes on being answered by whoever is there now.
pub(crate) fn conversations_follow_their_endpoints(settings: ProxySettings) {
    let mut stage = Stage::new(settings);
    stage.endpoints(&[0], 8080);
    let clients = stage.clients();
    let all = |name: &str, when: &str| {
        for client in &clients {
            client.is_answered_by(name, when);
        }
    };
    all("pod0:8080", "at first");
    stage.endpoints(&[1], 8080);
    all("pod1:8080", "the only endpoint replaced");
    stage.endpoints(&[], 8080);
    for client in &clients {
        client.is_refused();
    }
    stage.endpoints(&[0], 8080);
    all("pod0:8080", "one again");
    stage.endpoints(&[0], 8081);
    all("pod0:8081", "another target port");
    println!("{} clients of {}, none lost", clients.len(), settings.mode);
}
