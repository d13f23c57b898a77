//! The first process of a node: makes the node's file system, starts the agent
//! and the kubelet again and again, and reaps. On its standard input the
//! supervisor tells it what changes while it runs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

use ipnet::IpNet;
use linux::mount::{self, Upper};
use linux::process::Launch;
use rustix::process::{Pid, Signal, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::config::{Attach, Backend, Dns, FastPath, ForeignCni, Proxy};
use crate::init::{Reaper, Service, describe};
use crate::paths::Paths;

/// The binary on a node.
pub(crate) const EXECUTABLE: &str = "/opt/podwire/bin/podwire";
/// The plugin on a node.
const PLUGIN: &str = "/opt/cni/bin/podwire-cni";
/// Another project's plugins on a node.
const FOREIGN_PLUGINS: &str = "/opt/cni/foreign";
/// Its API access on a node.
const KUBECONFIG: &str = "/run/podwire/node.kubeconfig";
/// The machine's network on a node, from which images are pulled.
const MACHINE_NETWORK: &str = "/run/podwire/machine-netns";
/// The machine's resolver files on a node, found by the name above.
const MACHINE_RESOLVER: &str = "/etc/netns/machine-netns";
/// The supervisor's network namespace, which is the machine's.
const SUPERVISOR_NETWORK: &str = "/proc/1/ns/net";

/// The command line, not for people.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What the node is, as JSON.
    #[arg(long)]
    spec: String,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) lab: String,
    pub(crate) node: String,
    pub(crate) zone: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) cluster: Vec<IpNet>,
    pub(crate) service: Vec<IpNet>,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) agent_dns: Dns,
    pub(crate) attach: Attach,
    pub(crate) backend: Backend,
    pub(crate) cross_subnet: bool,
    pub(crate) fast_path: FastPath,
    pub(crate) proxy: Proxy,
    pub(crate) cni: Option<ForeignCni>,
    pub(crate) plugin: PathBuf,
    pub(crate) internet: bool,
}

/// What of a node changes while it runs: a line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// The agent goes on with another back end.
    Backend(Backend),
    /// The agent goes on with another proxy.
    Proxy(Proxy),
}

/// What the deciding thread is told.
enum Event {
    Ended(Pid, WaitStatus),
    Ordered(Order),
}

/// Why a node could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it was to be could not be read.
    #[error("cannot read the node's description: {0}")]
    Spec(#[from] serde_json::Error),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// A file of the node could not be made.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(file("make", path))
}

fn write(path: &Path, content: &str) -> Result<(), Error> {
    // What is there may be a link to somewhere else.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(file("replace", path)(error));
        }
        _ => {}
    }
    fs::write(path, content).map_err(file("write", path))
}

/// Runs a node. Returns only when it can't be made.
///
/// # Errors
/// When a step fails; the supervisor tries again.
pub fn run(options: &Options) -> Result<(), Error> {
    let spec: Spec = serde_json::from_str(&options.spec)?;
    let paths = Paths::of(&spec.lab);
    mount::make_private(Path::new("/"))?;

    // Opened while the machine's files are in sight.
    let log = |process: &str| {
        let path = paths.log(&format!("{}-{process}", spec.node));
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .open(&path)
            .map_err(file("open", &path))
    };
    let (agent_log, kubelet_log) = (log("agent")?, log("kubelet")?);
    let kubeconfig_path = paths.node_kubeconfig();
    let kubeconfig =
        fs::read_to_string(&kubeconfig_path).map_err(file("read", &kubeconfig_path))?;

    let cgroups = cgroup::enter(&spec.lab, &spec.node);
    if let Err(error) = &cgroups {
        tracing::info!("containers run without limits: {error}");
    }
    make_root(&spec, &paths, &kubeconfig, cgroups.is_ok())?;
    mount::pivot_root(&paths.node(&spec.node).join("root"))?;
    rustix::system::sethostname(spec.node.as_bytes()).map_err(|errno| Error::System {
        action: "set the host name",
        source: errno.into(),
    })?;
    supervise(&spec, &agent_log, &kubelet_log)
}

/// Puts the node's root together below `fs/nodes/NODE/root`.
fn make_root(spec: &Spec, paths: &Paths, kubeconfig: &str, cgroups: bool) -> Result<(), Error> {
    let node = paths.node(&spec.node);
    let part = |name: &str| node.join(name);
    for name in ["upper", "work", "root", "containers", "logs"] {
        make_dir(&part(name))?;
    }
    let root = part("root");
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    mount::overlay(
        &[Path::new("/")],
        Some(Upper {
            upper: &part("upper"),
            work: &part("work"),
        }),
        &root,
    )?;
    for name in ["dev", "opt", "proc", "run", "sys", "tmp", "var"] {
        make_dir(&at(name))?;
    }
    mount::proc(&at("proc"))?;
    mount::sysfs(&at("sys"))?;
    // Not what the machine has there: crun takes the unified tree or none.
    if cgroups {
        mount::cgroup2(&at("sys/fs/cgroup"))?;
    } else {
        mount::tmpfs(&at("sys/fs/cgroup"), "mode=0755")?;
    }
    make_devices(&at("dev"))?;

    // What a node must not inherit from the machine: its run-time state, its
    // pods, its plugins' configuration and reservations.
    for (name, options) in [
        ("run", "mode=0755"),
        ("tmp", "mode=1777"),
        ("etc/cni/net.d", "mode=0755"),
        ("var/lib/cni", "mode=0755"),
        ("var/lib/kubelet", "mode=0755"),
    ] {
        make_dir(&at(name))?;
        mount::tmpfs(&at(name), options)?;
    }
    for name in ["run/lock", "run/netns", "run/podwire/host-root"] {
        make_dir(&at(name))?;
    }
    mount::bind_read_only(Path::new("/"), &at("run/podwire/host-root"))?;
    for (source, name) in [
        (part("containers"), "var/lib/podwire/containers"),
        (part("logs"), "var/log/pods"),
        (paths.images(), "var/lib/podwire/images"),
    ] {
        make_dir(&at(name))?;
        mount::bind(&source, &at(name))?;
    }
    // The lab is closed, but its images are the machine's business: the kubelet
    // pulls them from where the machine would.
    bind_file(Path::new(SUPERVISOR_NETWORK), &at(MACHINE_NETWORK))?;
    make_dir(&at(MACHINE_RESOLVER))?;
    for name in ["resolv.conf", "hosts"] {
        // A machine without one asks nobody.
        let machines = fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
        write(&at(MACHINE_RESOLVER).join(name), &machines)?;
    }
    install_executable(&at(EXECUTABLE))?;
    bind_file(&spec.plugin, &at(PLUGIN))?;
    if let Some(cni) = &spec.cni {
        make_dir(&at(FOREIGN_PLUGINS))?;
        mount::bind_read_only(&cni.bin, &at(FOREIGN_PLUGINS))?;
        copy_files(&cni.conf, &at("etc/cni/net.d"))?;
    }

    let kubeconfig_path = at(KUBECONFIG);
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&kubeconfig_path)
        .and_then(|mut file| io::Write::write_all(&mut file, kubeconfig.as_bytes()))
        .map_err(file("write", &kubeconfig_path))?;
    let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n".to_owned();
    for address in &spec.addresses {
        hosts.push_str(&format!("{address}\t{}\n", spec.node));
    }
    write(&at("etc/hosts"), &hosts)?;
    write(&at("etc/resolv.conf"), &resolv_conf(spec.internet))?;
    write(&at("etc/hostname"), &format!("{}\n", spec.node))
}

/// The machine's name servers where the lab is open and they can be reached
/// from another namespace, else none.
fn resolv_conf(internet: bool) -> String {
    if !internet {
        return "# The lab is closed: there is nobody to ask.\n".into();
    }
    let machine = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    machine
        .lines()
        .filter(|line| {
            let server = line.strip_prefix("nameserver").map(str::trim);
            !server
                .and_then(|server| server.parse::<IpAddr>().ok())
                .is_some_and(|server| server.is_loopback())
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

fn make_devices(dev: &Path) -> Result<(), Error> {
    mount::tmpfs(dev, "mode=0755")?;
    for name in [
        "full", "fuse", "kmsg", "net/tun", "null", "random", "tty", "urandom", "zero",
    ] {
        let source = Path::new("/dev").join(name);
        if source.exists() {
            bind_file(&source, &dev.join(name))?;
        }
    }
    for name in ["pts", "shm", "mqueue"] {
        make_dir(&dev.join(name))?;
    }
    mount::devpts(&dev.join("pts"))?;
    mount::tmpfs(&dev.join("shm"), "mode=1777")?;
    mount::mqueue(&dev.join("mqueue"))?;
    for (target, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ] {
        let link = dev.join(name);
        symlink(target, &link).map_err(file("make", &link))?;
    }
    Ok(())
}

fn bind_file(source: &Path, target: &Path) -> Result<(), Error> {
    if let Some(parent) = target.parent() {
        make_dir(parent)?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(target)
        .map_err(file("make", target))?;
    mount::bind(source, target)?;
    Ok(())
}

/// Puts this very program there. A link under `/proc` can't be bound: it leads
/// to a mount of another namespace.
fn install_executable(target: &Path) -> Result<(), Error> {
    let own = Path::new("/proc/self/exe");
    let path = fs::read_link(own).map_err(file("read", own))?;
    let running = fs::metadata(own).map_err(file("inspect", own))?;
    let is_same = fs::metadata(&path)
        .is_ok_and(|found| found.ino() == running.ino() && found.dev() == running.dev());
    if is_same {
        return bind_file(&path, target);
    }
    // Its file was replaced while the lab ran.
    if let Some(parent) = target.parent() {
        make_dir(parent)?;
    }
    fs::copy(own, target)
        .map(drop)
        .map_err(file("copy the program to", target))
}

fn copy_files(from: &Path, to: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(to)
        .map_err(file("make", to))?;
    for entry in fs::read_dir(from).map_err(file("read", from))? {
        let source = entry.map_err(file("read", from))?.path();
        if let (true, Some(name)) = (source.is_file(), source.file_name()) {
            fs::copy(&source, to.join(name)).map_err(file("copy", &source))?;
        }
    }
    Ok(())
}

fn supervise(spec: &Spec, agent_log: &File, kubelet_log: &File) -> Result<(), Error> {
    let (sender, events) = mpsc::channel();
    let thread = |source| Error::System {
        action: "start a thread",
        source,
    };
    let ended = sender.clone();
    let reaper = Reaper::start(move |pid, status| {
        // The receiver lives as long as the process.
        let _ = ended.send(Event::Ended(pid, status));
    })
    .map_err(thread)?;
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(move || read_orders(&sender))
        .map_err(thread)?;
    let mut spec = spec.clone();
    let mut services = [
        (Service::new("agent"), agent_arguments(&spec), agent_log),
        (
            Service::new("kubelet"),
            kubelet_arguments(&spec),
            kubelet_log,
        ),
    ];
    loop {
        let now = Instant::now();
        for (service, arguments, log) in &mut services {
            if !service.is_due(now) {
                continue;
            }
            let launched = log
                .try_clone()
                .and_then(|out| Ok((out, log.try_clone()?)))
                .map_err(|error| error.to_string())
                .and_then(|(out, err)| {
                    let launch = Launch::new(EXECUTABLE)
                        .args(&*arguments)
                        .stdin(std::process::Stdio::null())
                        .stdout(out)
                        .stderr(err);
                    reaper.spawn(launch).map_err(|error| error.to_string())
                });
            if let Err(error) = service.started(launched.map(|child| child.process), now) {
                tracing::error!("{error}");
            }
        }
        let next = services
            .iter()
            .filter_map(|(service, ..)| service.due())
            .min();
        let received = match next {
            Some(due) => events.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => events
                .recv()
                .map_err(|_| mpsc::RecvTimeoutError::Disconnected),
        };
        match received {
            Ok(Event::Ended(pid, status)) => {
                for (service, ..) in &mut services {
                    if service.ended(pid, Instant::now()) {
                        tracing::warn!("{} ended: {}", service.name, describe(status));
                    }
                }
            }
            Ok(Event::Ordered(order)) => {
                match order {
                    Order::Backend(backend) => spec.backend = backend,
                    Order::Proxy(proxy) => spec.proxy = proxy,
                }
                let (agent, arguments, _) = &mut services[0];
                *arguments = agent_arguments(&spec);
                // It is started again with them when it has ended.
                if let Some(process) = agent.process()
                    && let Err(error) = process.signal(Signal::TERM)
                {
                    tracing::error!("cannot end the agent: {error}");
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(Error::System {
                    action: "reap processes",
                    source: io::Error::other("the reaper ended"),
                });
            }
        }
    }
}

/// Reads what the supervisor says until it is gone, and then this process is
/// about to end as well.
fn read_orders(events: &mpsc::Sender<Event>) {
    for line in io::stdin().lock().lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            // The receiver lives as long as the process.
            Ok(order) => drop(events.send(Event::Ordered(order))),
            Err(error) => tracing::error!("cannot read what the supervisor says: {error}"),
        }
    }
}

fn agent_arguments(spec: &Spec) -> Vec<String> {
    let mut arguments = vec![
        "agent".to_owned(),
        format!("--kubeconfig={KUBECONFIG}"),
        format!("--node={}", spec.node),
        format!("--attach={}", spec.attach),
        format!("--backend={}", spec.backend),
        format!("--proxy={}", spec.proxy),
        format!("--fast-path={}", spec.fast_path),
    ];
    if spec.cross_subnet {
        arguments.push("--cross-subnet".into());
    }
    arguments.extend(
        spec.cluster
            .iter()
            .map(|range| format!("--cluster-cidr={range}")),
    );
    arguments.extend(
        spec.service
            .iter()
            .map(|range| format!("--service-cidr={range}")),
    );
    arguments.push(format!("--dns={}", spec.agent_dns));
    if spec.agent_dns != Dns::Off {
        arguments.extend(
            spec.dns
                .iter()
                .map(|address| format!("--cluster-dns={address}")),
        );
    }
    if spec.cni.is_some() {
        arguments.push("--no-cni-conf".into());
    }
    arguments
}

fn kubelet_arguments(spec: &Spec) -> Vec<String> {
    let mut arguments = vec![
        "kubelet".to_owned(),
        format!("--kubeconfig={KUBECONFIG}"),
        format!("--node={}", spec.node),
        format!("--zone={}", spec.zone),
        format!("--image-network={MACHINE_NETWORK}"),
    ];
    arguments.extend(
        spec.addresses
            .iter()
            .map(|address| format!("--node-ip={address}")),
    );
    arguments.extend(
        spec.dns
            .iter()
            .map(|address| format!("--cluster-dns={address}")),
    );
    if spec.cni.is_some() {
        arguments.push(format!("--cni-bin-dir={FOREIGN_PLUGINS}"));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            lab: "lab".into(),
            node: "node-1".into(),
            zone: "zone-1".into(),
            addresses: vec![
                "192.168.64.11".parse().unwrap(),
                "fd00:64::11".parse().unwrap(),
            ],
            cluster: vec![
                "10.200.0.0/16".parse().unwrap(),
                "fd00:200::/48".parse().unwrap(),
            ],
            service: vec!["10.96.0.0/12".parse().unwrap()],
            dns: vec!["10.96.0.10".parse().unwrap()],
            agent_dns: Dns::Replace,
            attach: Attach::Routed,
            backend: Backend::VxlanGpe,
            cross_subnet: true,
            fast_path: FastPath::Off,
            proxy: Proxy::Iptables,
            cni: None,
            plugin: "/bin/podwire-cni".into(),
            internet: false,
        }
    }

    #[test]
    fn agent_and_kubelet_get_what_they_need_of_the_node() {
        let spec = spec();
        assert_eq!(
            agent_arguments(&spec)[1..],
            [
                "--kubeconfig=/run/podwire/node.kubeconfig",
                "--node=node-1",
                "--attach=routed",
                "--backend=vxlan-gpe",
                "--proxy=iptables",
                "--fast-path=off",
                "--cross-subnet",
                "--cluster-cidr=10.200.0.0/16",
                "--cluster-cidr=fd00:200::/48",
                "--service-cidr=10.96.0.0/12",
                "--dns=replace",
                "--cluster-dns=10.96.0.10",
            ]
        );
        assert_eq!(
            kubelet_arguments(&spec)[1..],
            [
                "--kubeconfig=/run/podwire/node.kubeconfig",
                "--node=node-1",
                "--zone=zone-1",
                "--image-network=/run/podwire/machine-netns",
                "--node-ip=192.168.64.11",
                "--node-ip=fd00:64::11",
                "--cluster-dns=10.96.0.10",
            ]
        );
    }

    #[test]
    fn foreign_plugins_take_the_place_of_podwires() {
        let spec = Spec {
            cni: Some(ForeignCni {
                conf: "/conf".into(),
                bin: "/bin".into(),
            }),
            ..spec()
        };
        assert!(agent_arguments(&spec).contains(&"--no-cni-conf".to_owned()));
        assert!(kubelet_arguments(&spec).contains(&"--cni-bin-dir=/opt/cni/foreign".to_owned()));
    }
}
