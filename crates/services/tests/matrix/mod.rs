//! Who reaches what, and under which address: the table of kube-proxy's
//! `TestInternalExternalMasquerade` and the verdicts without endpoints, as real
//! packets. Printed row by row.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::world::{
    Attach, NODE4, NODE6, OUTSIDE4, OUTSIDE6, Space, World, pod4, pod6, service, slice,
};
use podwire_services::{
    EndpointSlice, Family, Proxy, ProxyMode, ProxySettings, Service, TrafficPolicy,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long the absence of an answer is waited for.
const SILENCE: Duration = Duration::from_millis(700);

/// One family's addresses.
struct Plan {
    family: Family,
    cluster: &'static str,
    node: &'static str,
    load_balancer: &'static str,
    outside: &'static str,
    remote: &'static str,
    pod: fn(usize) -> String,
}

const PLANS: [Plan; 2] = [
    Plan {
        family: Family::V4,
        cluster: "10.96.0.10",
        node: NODE4,
        load_balancer: "198.51.100.1",
        outside: OUTSIDE4,
        remote: "10.200.2.10",
        pod: pod4,
    },
    Plan {
        family: Family::V6,
        cluster: "fd00:96::10",
        node: NODE6,
        load_balancer: "2001:db8::1",
        outside: OUTSIDE6,
        remote: "fd00:200:0:2::a",
        pod: pod6,
    },
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    /// A pod of this node that is no endpoint.
    Pod,
    /// A process of the node.
    Node,
    /// A host outside the cluster.
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Cluster,
    ExternalLocal,
    InternalLocal,
}

/// Where endpoints are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoints {
    HereAndElsewhere,
    Elsewhere,
    None,
}

/// What a caller sees.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Answers from these, and whether the last saw the caller's own address.
    Answered {
        by: BTreeSet<String>,
        own: bool,
    },
    Refused,
    Silence,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { by, own } => {
                let by: Vec<&str> = by.iter().map(String::as_str).collect();
                let source = if *own {
                    "own address"
                } else {
                    "node's address"
                };
                write!(f, "{} ({source})", by.join("+"))
            }
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("dropped"),
        }
    }
}

/// The rules, as BEHAVIOUR of kube-proxy states them.
fn expected(
    mode: ProxyMode,
    caller: Caller,
    target: Target,
    policy: Policy,
    endpoints: Endpoints,
) -> Outcome {
    let internal = target == Target::ClusterIp;
    // From where externalTrafficPolicy: Local does not narrow the choice.
    // To IPVS all callers are alike (Limit::IpvsExternalLocal).
    let inside = caller != Caller::Outside && mode != ProxyMode::Ipvs;
    let only_local = match (internal, policy) {
        (true, Policy::InternalLocal) => true,
        (false, Policy::ExternalLocal) => !inside,
        _ => false,
    };
    let by: BTreeSet<String> = match endpoints {
        Endpoints::None => return Outcome::Refused,
        Endpoints::Elsewhere if only_local => return Outcome::Silence,
        Endpoints::Elsewhere => ["remote"].map(str::to_owned).into(),
        Endpoints::HereAndElsewhere if only_local => ["local"].map(str::to_owned).into(),
        Endpoints::HereAndElsewhere => ["local", "remote"].map(str::to_owned).into(),
    };
    let own = match (caller, internal, policy) {
        (Caller::Pod, true, _) => true,
        (Caller::Pod | Caller::Outside, false, Policy::ExternalLocal) => true,
        // The node's own address is the node's address.
        _ => false,
    };
    Outcome::Answered { by, own }
}

/// The node with one pod that serves and one that calls, and an endpoint
/// elsewhere, which lives in the namespace of the outside host.
struct Stage {
    world: World,
    proxy: Proxy,
}

fn web(policy: Policy) -> Service {
    let mut web = service("web", &PLANS.map(|plan| plan.cluster), 80, Some(30080));
    web.load_balancer_ips = PLANS.map(|plan| plan.load_balancer.to_owned()).to_vec();
    if policy == Policy::ExternalLocal {
        web.external_policy = TrafficPolicy::Local;
    }
    if policy == Policy::InternalLocal {
        web.internal_policy = TrafficPolicy::Local;
    }
    web
}

fn slices(endpoints: Endpoints) -> [EndpointSlice; 2] {
    PLANS.map(|plan| {
        let local = (plan.pod)(0);
        let list: Vec<&str> = match endpoints {
            Endpoints::HereAndElsewhere => vec![&local, plan.remote],
            Endpoints::Elsewhere => vec![plan.remote],
            Endpoints::None => vec![],
        };
        let name = match plan.family {
            Family::V4 => "web-4",
            Family::V6 => "web-6",
        };
        let mut slice = slice("web", name, &list, 8080);
        for endpoint in &mut slice.endpoints {
            if endpoint.address == plan.remote {
                endpoint.node = Some("node-2".to_owned());
            }
        }
        slice
    })
}

impl Stage {
    fn new(settings: ProxySettings, attach: Attach) -> Self {
        let world = World::with(attach, 2);
        for (plan, v6, length) in [(&PLANS[0], "", 32), (&PLANS[1], "-6 ", 128)] {
            let (node, remote, outside) = (plan.node, plan.remote, plan.outside);
            world
                .outside
                .ip(&format!("{v6}addr add {remote}/{length} dev lo"));
            world
                .node
                .ip(&format!("{v6}route add {remote}/{length} via {outside}"));
            for to in [
                (plan.pod)(0),
                (plan.pod)(1),
                plan.cluster.into(),
                plan.load_balancer.into(),
            ] {
                world
                    .outside
                    .ip(&format!("{v6}route add {to}/{length} via {node}"));
            }
        }
        serve(&world.pods[0], "local", &["::"]);
        serve(&world.outside, "remote", &PLANS.map(|plan| plan.remote));
        let facts = world.facts();
        let proxy = world
            .node
            .namespace
            .run(|| Proxy::start_as(&settings, facts))
            .expect("entered")
            .expect("everything it needs is here");
        Self { world, proxy }
    }

    fn tell(&mut self, policy: Policy, endpoints: Endpoints) {
        self.proxy.service_changed(web(policy));
        for slice in slices(endpoints) {
            self.proxy.endpoint_slice_changed(&slice);
        }
        self.proxy.sync().expect("the kernel takes it");
    }

    fn space(&self, caller: Caller) -> &Space {
        match caller {
            Caller::Pod => &self.world.pods[1],
            Caller::Node => &self.world.node,
            Caller::Outside => &self.world.outside,
        }
    }

    /// Asks until all that are expected have answered, and a few times more.
    fn ask(&self, caller: Caller, to: SocketAddr, own: IpAddr, expected: &Outcome) -> Outcome {
        let patience = match expected {
            Outcome::Silence => SILENCE,
            _ => PATIENCE,
        };
        let wanted = match expected {
            Outcome::Answered { by, .. } => by.len(),
            _ => 0,
        };
        let mut seen = BTreeSet::new();
        let mut source = own;
        for round in 0.. {
            match self
                .space(caller)
                .namespace
                .run(|| ask(to, patience))
                .expect("entered")
            {
                Ok((name, from)) => {
                    seen.insert(name);
                    source = from;
                }
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    return Outcome::Refused;
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) =>
                {
                    return Outcome::Silence;
                }
                Err(error) => panic!("{caller:?} to {to}: {error}"),
            }
            // The odds that one of two is never drawn in sixty are nil.
            if round >= 5 && (seen.len() >= wanted || round >= 60) {
                break;
            }
        }
        Outcome::Answered {
            by: seen,
            own: source == own && caller != Caller::Node,
        }
    }
}

/// Answers at port 8080 of some addresses with a name and who asks.
fn serve(space: &Space, name: &'static str, addresses: &[&str]) {
    for address in addresses {
        let address: IpAddr = address.parse().expect("a literal");
        let (tcp, udp) = space
            .namespace
            .run(|| {
                (
                    TcpListener::bind((address, 8080)),
                    UdpSocket::bind((address, 8080)),
                )
            })
            .expect("entered");
        let (tcp, udp) = (tcp.expect("free port"), udp.expect("free port"));
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { return };
                if let Ok(peer) = stream.peer_addr() {
                    // A client that is gone needs no answer.
                    let _ = stream.write_all(answer(name, peer).as_bytes());
                }
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 8];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(answer(name, peer).as_bytes(), peer);
            }
        });
    }
}

fn answer(name: &str, peer: SocketAddr) -> String {
    format!("{name} {}", peer.ip().to_canonical())
}

fn ask(to: SocketAddr, patience: Duration) -> std::io::Result<(String, IpAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (name, peer) = text.split_once(' ').ok_or(ErrorKind::InvalidData)?;
    Ok((
        name.to_owned(),
        peer.parse().map_err(|_| ErrorKind::InvalidData)?,
    ))
}

/// Walks through all rows; a row that is wrong does not hide those behind it.
pub(crate) fn check(settings: ProxySettings, attach: Attach) {
    let mut stage = Stage::new(settings, attach);
    let mut wrong = Vec::new();
    for endpoints in [
        Endpoints::HereAndElsewhere,
        Endpoints::Elsewhere,
        Endpoints::None,
    ] {
        for policy in [
            Policy::Cluster,
            Policy::ExternalLocal,
            Policy::InternalLocal,
        ] {
            stage.tell(policy, endpoints);
            for target in [Target::ClusterIp, Target::NodePort, Target::LoadBalancer] {
                for caller in [Caller::Pod, Caller::Node, Caller::Outside] {
                    for plan in &PLANS {
                        let (address, port) = match target {
                            Target::ClusterIp => (plan.cluster, 80),
                            Target::NodePort => (plan.node, 30080),
                            Target::LoadBalancer => (plan.load_balancer, 80),
                        };
                        let own = match caller {
                            Caller::Pod => (plan.pod)(1),
                            Caller::Node => plan.node.to_owned(),
                            Caller::Outside => plan.outside.to_owned(),
                        };
                        let to = SocketAddr::new(address.parse().expect("a literal"), port);
                        let own = own.parse().expect("a literal");
                        let rule = expected(settings.mode, caller, target, policy, endpoints);
                        let seen = stage.ask(caller, to, own, &rule);
                        let mark = if seen == rule { "ok" } else { "WRONG" };
                        let row = format!(
                            "{:<17} {:<14} {:<13} {:<8} {:?}  {:<30} {mark}",
                            format!("{endpoints:?}"),
                            format!("{policy:?}"),
                            format!("{target:?}"),
                            format!("{caller:?}"),
                            plan.family,
                            seen.to_string(),
                        );
                        println!("{row}");
                        if seen != rule {
                            wrong.push(format!("{row}; the rule is: {rule}"));
                        }
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{settings:?}, {attach:?}:\n{}",
        wrong.join("\n")
    );
}
