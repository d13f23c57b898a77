//! The programs that manage a machine's links, as distributions ship them, on a node
//! with pods: with podwire's files they leave what podwire made as it is; without,
//! they do not. `cargo xtask setup` unpacks them.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Node, Pod, addresses, assert_pings, eventually, ip};
use linux::process::{Child, Launch, Namespace};
use linux::{mount, process};
use rstest::rstest;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Where packages are unpacked.
const PACKAGES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../target/tools/link-managers"
);

/// A file of the packages.
fn packaged(path: &str) -> PathBuf {
    let root = Path::new(PACKAGES);
    // Distributions differ in where their packages have it.
    let files = [root.join(path), root.join("usr").join(path)];
    let found = files.into_iter().find(|file| file.exists());
    found.unwrap_or_else(|| panic!("no {path} below {PACKAGES}: run cargo xtask setup"))
}

/// Writes a file and its folder.
fn write(path: &str, text: &str) {
    fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A running daemon of the node, with the mounts of the test.
struct Daemon(Child);

impl Daemon {
    fn start(node: &Node, name: &str, program: &Path, arguments: &[&str]) -> Self {
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let libraries = Path::new(PACKAGES).join(libraries);
        let libraries = [libraries.join("systemd"), libraries];
        let log = node.state.path().join(format!("{name}.log"));
        let log = fs::File::create(log).unwrap();
        let namespace = node.namespace.as_fd().try_clone_to_owned().unwrap();
        let child = Launch::new(program)
            // systemd-udevd is another name of udevadm.
            .arg0(name)
            .args(arguments)
            .env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap())
            .env("NOTIFY_SOCKET", NOTIFY)
            .join(Namespace::Network, namespace)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .die_with_parent(Signal::KILL)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Starts one that says when it is ready, and waits until it is.
    fn ready(node: &Node, name: &str, program: &Path, arguments: &[&str]) -> Self {
        let _ = fs::remove_file(NOTIFY);
        let told = UnixDatagram::bind(NOTIFY).unwrap();
        // It may not run as root.
        fs::set_permissions(NOTIFY, fs::Permissions::from_mode(0o666)).unwrap();
        told.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let daemon = Self::start(node, name, program, arguments);
        let mut text = [0; 4096];
        loop {
            let length = told.recv(&mut text).unwrap();
            let text = String::from_utf8_lossy(&text[..length]);
            if text.lines().any(|line| line == "READY=1") {
                return daemon;
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.process.signal(Signal::TERM);
        let _ = self.0.wait();
    }
}

const NOTIFY: &str = "/run/notify";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Manager {
    Networkd,
    NetworkManager,
}

impl Manager {
    /// A user's configuration that is for every interface.
    fn configure(self) {
        match self {
            Self::Networkd => {
                write(
                    "/etc/systemd/network/90-all.network",
                    "[Match]\nName=*\n[Network]\nLinkLocalAddressing=ipv6\nDHCP=yes\n",
                );
                for folder in ["", "links", "leases", "lldp"] {
                    let folder = Path::new("/run/systemd/netif").join(folder);
                    fs::create_dir_all(&folder).unwrap();
                    chown(&folder, Some(NETWORKD), Some(NETWORKD)).unwrap();
                }
            }
            Self::NetworkManager => {
                write(
                    "/etc/NetworkManager/NetworkManager.conf",
                    "[main]\nplugins=keyfile\n[device-all]\nmatch-device=*\nmanaged=1\n",
                );
                // Several interfaces may have it at once: 3.
                let profile = "/etc/NetworkManager/system-connections/all.nmconnection";
                write(
                    profile,
                    "[connection]\nid=all\ntype=ethernet\nmulti-connect=3\n\
                     [ethernet]\ncloned-mac-address=random\n\
                     [ipv4]\nmethod=manual\naddress1=198.51.100.1/24\n\
                     [ipv6]\nmethod=link-local\n",
                );
                // It refuses profiles that others may read.
                fs::set_permissions(profile, fs::Permissions::from_mode(0o600)).unwrap();
                fs::create_dir_all("/var/lib/NetworkManager").unwrap();
                fs::create_dir_all("/run/dbus").unwrap();
                write(
                    "/etc/dbus-1/system.conf",
                    "<busconfig><type>system</type>\
                     <listen>unix:path=/run/dbus/system_bus_socket</listen>\
                     <auth>EXTERNAL</auth><policy context=\"default\"><allow own=\"*\"/>\
                     <allow send_destination=\"*\" eavesdrop=\"true\"/>\
                     <allow eavesdrop=\"true\"/></policy></busconfig>",
                );
            }
        }
    }

    /// What it changes of podwire's when nothing keeps it from that.
    fn spoils(self) -> BTreeSet<&'static str> {
        match self {
            Self::Networkd => ["link", "neighbour", "route", "rule"].into(),
            Self::NetworkManager => ["mac", "neighbour", "route"].into(),
        }
    }

    fn start(self, node: &Node) -> Vec<Daemon> {
        match self {
            Self::Networkd => {
                let program = packaged("lib/systemd/systemd-networkd");
                vec![Daemon::ready(node, self.program(), &program, &[])]
            }
            Self::NetworkManager => {
                let bus = packaged("bin/dbus-daemon");
                let arguments = [
                    "--config-file=/etc/dbus-1/system.conf",
                    "--nofork",
                    "--nopidfile",
                ];
                let bus = Daemon::start(node, "dbus-daemon", &bus, &arguments);
                eventually("the bus listens", || {
                    fs::metadata("/run/dbus/system_bus_socket")
                });
                let program = packaged("sbin/NetworkManager");
                let manager = Daemon::start(node, self.program(), &program, &["--debug"]);
                // What uses the bus ends first.
                vec![manager, bus]
            }
        }
    }

    /// Whether it has taken an interface of the node to itself.
    fn manages(self, node: &Node, interface: &str) -> Result<(), String> {
        let shown = ip(&node.namespace, &format!("link show {interface}"));
        let (folder, signs) = match self {
            Self::Networkd => ("/run/systemd/netif/links", "ADMIN_STATE=configur"),
            Self::NetworkManager => ("/run/NetworkManager/devices", "managed=true"),
        };
        let state = format!("{folder}/{}", shown[0]["ifindex"]);
        let said = fs::read_to_string(state).unwrap_or_default();
        if said.contains(signs) {
            return Ok(());
        }
        let log = node.state.path().join(format!("{}.log", self.program()));
        Err(said + &fs::read_to_string(log).unwrap_or_default())
    }

    fn program(self) -> &'static str {
        match self {
            Self::Networkd => "systemd-networkd",
            Self::NetworkManager => "NetworkManager",
        }
    }
}

/// User of systemd-networkd.
const NETWORKD: u32 = 998;

/// How the kernel says that somebody chose an interface's address, and not chance:
/// `NET_ADDR_SET` (include/uapi/linux/netdevice.h).
const SET: &str = "3";

/// Makes an interface of the user's, with an address that is left to chance, and waits
/// until udev has set it up.
fn add_others(node: &Node, interface: &str) {
    for command in [
        format!("link add {interface} type veth peer name {interface}p"),
        format!("link set {interface} up"),
        format!("link set {interface}p up"),
    ] {
        ip(&node.namespace, &command);
    }
    eventually("udev sets the user's interface up", || {
        let shown = ip(&node.namespace, &format!("link show {interface}"));
        let sign = format!("/sys/class/net/{interface}/addr_assign_type");
        let readdressed = fs::read_to_string(sign).unwrap().trim() == SET;
        let done = readdressed && shown[0]["mtu"] == 1280;
        done.then_some(()).ok_or(shown)
    });
}

/// A node with `/etc`, `/run`, `/var/lib` and `/sys` of its own, for this test's thread
/// and its children.
fn machine() -> Node {
    let node = Node::new();
    process::unshare_mounts().unwrap();
    mount::make_private(Path::new("/")).unwrap();
    for folder in ["/etc", "/run", "/var/lib"] {
        mount::tmpfs(Path::new(folder), "").unwrap();
    }
    // It shows the interfaces of the namespace it is mounted from.
    node.namespace
        .run(|| mount::sysfs(Path::new("/sys")))
        .unwrap()
        .unwrap();
    write(
        "/etc/passwd",
        &format!("root:x:0:0::/:/bin/sh\nsystemd-network:x:{NETWORKD}:{NETWORKD}::/:/bin/sh\n"),
    );
    write(
        "/etc/group",
        &format!("root:x:0:\nsystemd-network:x:{NETWORKD}:\n"),
    );
    write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    for folder in ["udev/rules.d", "systemd/network"] {
        let to = Path::new("/run").join(folder);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(packaged(&format!("lib/{folder}"))).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            // Of interfaces; the rules of disks and terminals find none here.
            if name.contains("net") || name.contains("-nm-") || name == "99-default.link" {
                fs::copy(file.path(), to.join(name)).unwrap();
            }
        }
    }
    node
}

/// What podwire made on the node: each thing with its settings.
fn made(node: &Node) -> BTreeMap<String, Value> {
    let show = |command: &str| match ip(&node.namespace, command) {
        Value::Array(objects) => objects,
        other => panic!("{other}"),
    };
    let of = |object: &Value, keys: &[&str]| -> Value {
        keys.iter().map(|key| object[*key].clone()).collect()
    };
    let mut made = BTreeMap::new();
    for link in show("address show") {
        if !link["ifname"].as_str().unwrap().starts_with("pw") {
            continue;
        }
        for address in link["addr_info"].as_array().unwrap() {
            if address["scope"] == "global" {
                let settings = of(address, &["prefixlen"]);
                made.insert(
                    format!("address {} {}", link["ifname"], address["local"]),
                    settings,
                );
            }
        }
        made.insert(format!("mac {}", link["ifname"]), link["address"].clone());
        let keys = ["mtu", "master", "flags", "ifalias"];
        made.insert(format!("link {}", link["ifname"]), of(&link, &keys));
    }
    for family in ["-4", "-6"] {
        for route in show(&format!("{family} route show table all proto 112")) {
            let settings = of(&route, &["dev", "metric", "gateway"]);
            made.insert(format!("route {}", route["dst"]), settings);
        }
        for rule in show(&format!("{family} rule show")) {
            let settings = of(&rule, &["src", "table"]);
            made.insert(format!("rule {family} {}", rule["priority"]), settings);
        }
        for entry in show(&format!("{family} neigh show nud permanent")) {
            let settings = of(&entry, &["lladdr"]);
            made.insert(
                format!("neighbour {} {}", entry["dev"], entry["dst"]),
                settings,
            );
        }
    }
    made
}

/// A pod of each attach mode.
fn attach(node: &Node, round: &str) -> [(Pod, Value); 2] {
    ["bridge", "routed"].map(|mode| {
        let pod = Pod::new(&format!("{mode}-{round}"));
        let mut configuration = node.configuration(mode);
        if mode == "routed" {
            configuration["name"] = json!("routed");
            configuration["ipam"]["ranges"] =
                json!([[{"subnet": "10.200.2.0/24"}], [{"subnet": "fd00:200:0:2::/64"}]]);
        }
        let result = node.call("ADD", &configuration, &pod).ok();
        (pod, result)
    })
}

#[rstest]
#[case(Manager::Networkd)]
#[case(Manager::NetworkManager)]
fn link_managers_leave_pods_alone_because_of_the_files(
    #[case] manager: Manager,
    #[values(true, false)] files: bool,
) {
    let node = machine();
    // A user's file for every interface, as `.network` files are.
    write(
        "/etc/systemd/network/50-all.link",
        "[Match]\nOriginalName=*\n[Link]\nMTUBytes=1280\nMACAddressPolicy=persistent\n",
    );
    manager.configure();
    if files {
        assert!(
            !podwire_cni::install::drop_ins(Path::new("/etc"))
                .unwrap()
                .is_empty()
        );
    }
    // It looks at its files again only every few seconds.
    let _udev = Daemon::ready(&node, "systemd-udevd", &packaged("bin/udevadm"), &[]);
    add_others(&node, "other");
    // A way to another node's pods, and a rule, of podwire's protocol.
    if manager == Manager::Networkd {
        ip(
            &node.namespace,
            "route add 10.200.7.0/24 dev other proto 112",
        );
        ip(
            &node.namespace,
            "rule add from 10.200.2.0/24 table 112 protocol 112 priority 500",
        );
    }
    // Some pods are there before the manager, some come later.
    let early = attach(&node, "early");
    let first = made(&node);
    let _daemons = manager.start(&node);
    eventually("the manager takes the user's interface", || {
        manager.manages(&node, "other")
    });
    let late = attach(&node, "late");
    let second = made(&node);
    let changed = || {
        let now = made(&node);
        let all = first.iter().chain(&second);
        all.filter(|(what, settings)| now.get(*what) != Some(*settings))
            .map(|(what, settings)| format!("{what} {settings} {:?}", now.get(what)))
            .collect::<BTreeSet<_>>()
    };
    if !files {
        eventually("the manager interferes", || {
            let changed = changed();
            let kinds = changed.iter().filter_map(|what| what.split(' ').next());
            let there = manager.spoils().is_subset(&kinds.collect());
            // An address that podwire chose is not for udev to choose.
            let kept = manager == Manager::NetworkManager
                || !changed.iter().any(|what| what.starts_with("mac"));
            (there && kept).then_some(()).ok_or(changed)
        });
        return;
    }
    // What comes last it sees last.
    let known = |index: &Value| Path::new(&format!("/run/udev/data/n{index}")).exists();
    eventually("udev has seen the pods' interfaces", || {
        let links = ip(&node.namespace, "link show");
        // Loopback, the first, was there before udev.
        let mut all = links.as_array().unwrap()[1..].iter();
        let all = all.all(|link| known(&link["ifindex"]));
        all.then_some(()).ok_or(links)
    });
    add_others(&node, "last");
    eventually("the manager takes the last interface", || {
        manager.manages(&node, "last")
    });
    assert_eq!(changed(), BTreeSet::new());
    let all = early.iter().chain(&late);
    for address in all.flat_map(|(_, result)| addresses(result)) {
        assert_pings(&node.namespace, address);
        assert_pings(&early[0].0.namespace, address);
    }
    for (what, settings) in made(&node) {
        assert!(
            !what.starts_with("link") || settings[0] == 1500,
            "{what}: {settings}"
        );
    }
}
