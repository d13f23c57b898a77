//! A cluster of three nodes made of namespaces: two on one subnet, one on
//! another, a router between them, an agent on each and pods attached by the
//! plugin's library. No program from outside is started.

use std::net::{IpAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::fake::FakeApi;
use api::{EndpointSlice, Node, Service};
use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, Bridge, VethEnd};
use linux::namespace::NetworkNamespace;
use linux::netlink::Socket;
use linux::route::{self, Route};
use linux::sysctl::{Family, Setting};
use podwire_agent::{Options, run_until};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::traffic;

/// How long the agents may take until everything is in force.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The API server's port in the router's namespace.
const API_PORT: u16 = 6443;

/// A cluster.
pub(crate) struct World {
    /// What the nodes are connected to: a bridge a subnet.
    pub(crate) router: NetworkNamespace,
    pub(crate) nodes: Vec<Host>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) api: FakeApi,
    runtime: tokio::runtime::Runtime,
}

/// A node.
pub(crate) struct Host {
    pub(crate) name: String,
    number: u8,
    subnet: u8,
    pub(crate) namespace: NetworkNamespace,
    files: tempfile::TempDir,
    agent: Option<Agent>,
}

/// A pod; it serves.
pub(crate) struct Pod {
    pub(crate) namespace: NetworkNamespace,
    pub(crate) addresses: Vec<IpAddr>,
    /// The largest packet of its interface.
    pub(crate) mtu: u32,
    /// Services that have it as their only endpoint, one a family.
    pub(crate) services: Vec<IpAddr>,
    node: usize,
    id: String,
}

struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            if !std::thread::panicking() {
                outcome.expect("the agent does not panic");
            }
        }
    }
}

fn netlink(socket: &mut Socket, requests: &[linux::netlink::Request]) {
    socket.execute_all(requests).expect("root changes links");
}

fn index(socket: &mut Socket, name: &str) -> u32 {
    link::get(socket, name)
        .expect("readable")
        .unwrap_or_else(|| panic!("no link {name}"))
        .index
}

fn namespace() -> NetworkNamespace {
    let namespace = NetworkNamespace::create().expect("root makes namespaces");
    namespace
        .run(|| {
            for interface in ["all", "default"] {
                Setting::of_interface(Family::V6, interface, "accept_dad").write(0)?;
                Setting::of_interface(Family::V6, interface, "dad_transmits").write(0)?;
                Setting::of_interface(Family::V6, interface, "accept_ra").write(0)?;
                Setting::of_interface(Family::V4, interface, "rp_filter").write(0)?;
            }
            Ok::<(), linux::sysctl::Error>(())
        })
        .expect("entered")
        .expect("settings of the own namespace");
    let mut socket = namespace.route_socket().expect("netlink");
    let loopback = index(&mut socket, "lo");
    netlink(&mut socket, &[link::set_up(loopback)]);
    namespace
}

/// The addresses of the machine with this number in a subnet.
fn underlay(subnet: u8, number: u8) -> [IpNet; 2] {
    [
        format!("192.168.{}.{number}/24", 64 + subnet),
        format!("fd00:64:0:{subnet}::{number}/64"),
    ]
    .map(|text| text.parse().expect("an address"))
}

/// A node's pod ranges.
fn ranges(number: u8) -> [String; 2] {
    [
        format!("10.200.{number}.0/24"),
        format!("fd00:200:0:{number}::/64"),
    ]
}

impl World {
    /// Nodes 1 and 2 on the first subnet, node 3 on the second; not yet started.
    pub(crate) fn new() -> World {
        let router = namespace();
        let mut socket = router.route_socket().expect("netlink");
        for subnet in 0..2 {
            let name = format!("subnet{subnet}");
            let bridge = link::add_bridge(&Bridge {
                name: &name,
                ..Bridge::default()
            });
            netlink(&mut socket, &[bridge]);
            let bridge = index(&mut socket, &name);
            let addresses = underlay(subnet, 1).map(|net| address::add(&Address::new(bridge, net)));
            netlink(&mut socket, &[link::set_up(bridge)]);
            netlink(&mut socket, &addresses);
        }
        router
            .run(|| {
                Setting::forwarding(Family::V4).write(1)?;
                Setting::forwarding(Family::V6).write(1)
            })
            .expect("entered")
            .expect("settings of the own namespace");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let [control, _] = underlay(0, 1);
        let listener = router
            .run(|| TcpListener::bind((control.addr(), API_PORT)))
            .expect("entered")
            .expect("a free port");
        let api = {
            let _guard = runtime.enter();
            FakeApi::on(listener)
        };
        let nodes = [(1, 0), (2, 0), (3, 1)]
            .map(|(number, subnet)| Host::new(&router, number, subnet))
            .into();
        let world = World {
            router,
            nodes,
            pods: Vec::new(),
            api,
            runtime,
        };
        for node in 0..world.nodes.len() {
            world.register(node);
        }
        world
    }

    /// Tells the API of a node.
    pub(crate) fn register(&self, node: usize) {
        self.api.put::<Node>(self.nodes[node].object());
    }

    /// Starts the agent of a node, with its options changed; one that runs is
    /// stopped first.
    pub(crate) fn start(&mut self, node: usize, change: impl FnOnce(&mut Options)) {
        self.start_after(node, || {}, change);
    }

    /// The same, in a thread that does something before.
    pub(crate) fn start_after(
        &mut self,
        node: usize,
        before: impl FnOnce() + Send + 'static,
        change: impl FnOnce(&mut Options),
    ) {
        let host = &mut self.nodes[node];
        host.agent = None;
        let kubeconfig = host.files.path().join("kubeconfig");
        std::fs::write(&kubeconfig, self.api.kubeconfig()).expect("writable");
        let mut options = Options {
            kubeconfig: Some(kubeconfig),
            cni_conf_dir: host.files.path().join("net.d"),
            admin_socket: host.files.path().join("agent.sock"),
            policy_socket: host.files.path().join("cni.sock"),
            ipam_dir: host.files.path().join("ipam"),
            cluster_cidr: ["10.200.0.0/16", "fd00:200::/48"]
                .map(|range| range.parse().expect("a range"))
                .into(),
            wireguard_key: host.files.path().join("wireguard.key"),
            ..Options::new(&host.name)
        };
        change(&mut options);
        let (stop, stopped) = oneshot::channel::<()>();
        let namespace = host.namespace.clone();
        let agent = std::thread::Builder::new().name("agent".to_owned());
        let thread = agent.spawn(move || {
            namespace.enter().expect("root enters namespaces");
            before();
            run_until(options, async {
                let _ = stopped.await;
            })
            .expect("the agent runs");
        });
        let thread = thread.expect("a thread");
        host.agent = Some(Agent {
            stop: Some(stop),
            thread: Some(thread),
        });
    }

    /// Waits until pods can be attached.
    pub(crate) fn wait_until_ready(&self, node: usize) {
        let host = &self.nodes[node];
        wait("CNI configuration", || {
            host.configuration().map(drop).ok_or_else(|| host.health())
        });
    }

    /// Ends the agent of a node; its data plane stays.
    pub(crate) fn stop(&mut self, node: usize) {
        self.nodes[node].agent = None;
    }

    /// Attaches a pod with the configuration the node's agent wrote, and puts a
    /// Service of each family in front of it.
    pub(crate) fn add_pod(&mut self, node: usize) -> usize {
        self.add_pod_with(node, &json!({}))
    }

    /// The same with what a container runtime asks for (`runtimeConfig`).
    pub(crate) fn add_pod_with(&mut self, node: usize, wishes: &Value) -> usize {
        let number = self.pods.len();
        let host = &self.nodes[node];
        let pod = NetworkNamespace::create().expect("root makes namespaces");
        let id = format!("pod{number}");
        let result = host.cni("ADD", &id, &pod, wishes);
        let addresses: Vec<IpAddr> = result["ips"]
            .as_array()
            .expect("addresses")
            .iter()
            .filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok())
            .map(|net| net.addr())
            .collect();
        let mut socket = pod.route_socket().expect("netlink");
        let mtu = link::get(&mut socket, "eth0")
            .expect("readable")
            .expect("the pod's interface")
            .mtu;
        traffic::serve(&pod);
        let services: Vec<IpAddr> = addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(_) => format!("10.96.0.{}", 10 + number),
                IpAddr::V6(_) => format!("fd00:96::{}", 10 + number),
            })
            .map(|text| text.parse().expect("an address"))
            .collect();
        self.api.put::<Service>(json!({
            "metadata": {"namespace": "default", "name": id},
            "spec": {"clusterIPs": services, "ports": [{"port": traffic::PORT, "protocol": "TCP"}]},
        }));
        for address in &addresses {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            self.api.put::<EndpointSlice>(json!({
                "metadata": {"namespace": "default", "name": format!("{id}-{}", family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": id}},
                "addressType": family,
                "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
                "ports": [{"port": traffic::PORT, "protocol": "TCP"}],
            }));
        }
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        self.api.put::<api::Pod>(json!({
            "metadata": {"namespace": "default", "name": id},
            "spec": {"nodeName": host.name}, "status": {"podIPs": ips, "phase": "Running"},
        }));
        self.pods.push(Pod {
            namespace: pod,
            addresses,
            mtu,
            services,
            node,
            id,
        });
        number
    }

    /// Detaches a pod, whose namespace stays.
    pub(crate) fn delete_pod(&self, pod: usize) {
        let pod = &self.pods[pod];
        self.nodes[pod.node].cni("DEL", &pod.id, &pod.namespace, &json!({}));
    }

    /// Lets a pod and its node send more at once than the network carries.
    pub(crate) fn raise_mtu(&self, pod: usize, mtu: u32) {
        let pod = &self.pods[pod];
        let mut inside = pod.namespace.route_socket().expect("netlink");
        let eth0 = link::get(&mut inside, "eth0")
            .expect("readable")
            .expect("there");
        let mut outside = self.nodes[pod.node]
            .namespace
            .route_socket()
            .expect("netlink");
        let peer = eth0.peer.expect("a veth has a peer");
        netlink(&mut outside, &[link::set_mtu(peer, mtu)]);
        netlink(&mut inside, &[link::set_mtu(eth0.index, mtu)]);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pod in 0..self.pods.len() {
            if !std::thread::panicking() {
                self.delete_pod(pod);
            }
        }
        self.nodes.clear();
        // The API server's tasks end within the runtime they run on.
        let _guard = self.runtime.enter();
    }
}

impl Host {
    fn new(router: &NetworkNamespace, number: u8, subnet: u8) -> Host {
        let namespace = namespace();
        let mut switch = router.route_socket().expect("netlink");
        let bridge = index(&mut switch, &format!("subnet{subnet}"));
        let port = format!("node{number}");
        let pair = link::add_veth(
            &VethEnd {
                name: &port,
                ..VethEnd::default()
            },
            Some(bridge),
            &VethEnd {
                name: "eth0",
                namespace: Some(&namespace),
                ..VethEnd::default()
            },
        );
        netlink(&mut switch, &[pair]);
        let mut socket = namespace.route_socket().expect("netlink");
        let eth0 = index(&mut socket, "eth0");
        let addresses = underlay(subnet, 10 + number);
        netlink(&mut socket, &[link::set_up(eth0)]);
        netlink(
            &mut socket,
            &addresses.map(|net| address::add(&Address::new(eth0, net))),
        );
        let gateways = underlay(subnet, 1).map(|net| Route::default_of(net.addr()).dev(eth0));
        netlink(
            &mut socket,
            &gateways.map(|gateway| route::add(&gateway.protocol(4))),
        );
        Host {
            name: format!("node{number}"),
            number,
            subnet,
            namespace,
            files: tempfile::tempdir().expect("a directory"),
            agent: None,
        }
    }

    /// Its Node object, without annotations.
    pub(crate) fn object(&self) -> Value {
        let addresses: Vec<Value> = underlay(self.subnet, 10 + self.number)
            .iter()
            .map(|net| json!({"type": "InternalIP", "address": net.addr()}))
            .collect();
        json!({
            "metadata": {"name": self.name},
            "spec": {"podCIDRs": ranges(self.number)},
            "status": {"addresses": addresses},
        })
    }

    /// Its agent's admin socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.files.path().join("agent.sock")
    }

    /// The CNI configuration its agent wrote.
    pub(crate) fn configuration(&self) -> Option<Value> {
        let path: PathBuf = self.files.path().join("net.d/10-podwire.conflist");
        let text = std::fs::read(path).ok()?;
        Some(serde_json::from_slice(&text).expect("never half a file"))
    }

    fn cni(&self, command: &str, id: &str, pod: &NetworkNamespace, wishes: &Value) -> Value {
        let list = self.configuration().expect("the node is ready");
        let mut configuration = list["plugins"][0].clone();
        for key in ["cniVersion", "name"] {
            configuration[key] = list[key].clone();
        }
        configuration["ipam"]["dataDir"] = json!(self.files.path().join("ipam"));
        configuration["runtimeConfig"] = wishes.clone();
        configuration["logFile"] = json!(self.files.path().join("cni.log"));
        let path = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
        let variables = |name: &str| {
            let value = match name {
                "CNI_COMMAND" => command,
                "CNI_CONTAINERID" => id,
                "CNI_NETNS" => &path,
                "CNI_IFNAME" => "eth0",
                "CNI_PATH" => "/",
                _ => return None,
            };
            Some(value.into())
        };
        let text = configuration.to_string();
        let (outcome, output) = self
            .namespace
            .run(|| {
                let mut output = Vec::new();
                let outcome = cni::plugin::run(&variables, &mut text.as_bytes(), &mut output);
                (outcome, output)
            })
            .expect("entered");
        if let Err(error) = outcome {
            panic!("{command} of {id} on {}: {error}", self.name);
        }
        serde_json::from_slice(&output).unwrap_or_default()
    }

    /// What its agent says of itself.
    pub(crate) fn health(&self) -> String {
        self.namespace
            .run(|| {
                use std::io::{Read as _, Write as _};
                let mut stream = std::net::TcpStream::connect("127.0.0.1:10256")?;
                stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                std::io::Result::Ok(answer)
            })
            .expect("entered")
            .unwrap_or_else(|error| error.to_string())
    }
}

/// Looks again until it is so; what is asked has no event of its own.
pub(crate) fn wait(what: &str, check: impl FnMut() -> Result<(), String>) {
    attempt(check).unwrap_or_else(|last| panic!("no {what}; last: {last}"));
}

/// Tries again until it succeeds; the last error when it does not in time.
pub(crate) fn attempt<T>(mut try_it: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_it() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
}
