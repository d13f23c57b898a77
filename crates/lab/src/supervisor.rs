//! The first process of a lab: holds its network, starts its control plane and
//! its nodes again and again, reaps, and answers on `control.sock`.
//!
//! One thread decides; others only wait for something and tell it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, PipeWriter, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Instant;

use linux::mount;
use linux::namespace::NetworkNamespace;
use linux::process::{Launch, Namespace, Process, take_inherited};
use rustix::process::{Pid, Signal, WaitStatus};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::config::{Backend, Config, Proxy, is_label, node_number};
use crate::init::{Reaper, Service, describe};
use crate::internet;
use crate::lock::Lock;
use crate::node::{Order, Spec};
use crate::paths::Paths;
use crate::protocol::{self, Answer, NodeStatus, Request, Status};
use crate::underlay::{self, Underlay};

/// The command line, not for people.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The lab's name.
    #[arg(long)]
    name: String,
    /// The number of the open, locked lock file.
    #[arg(long)]
    lock: i32,
    /// The number of the pipe on which progress is reported.
    #[arg(long)]
    report: i32,
    /// The number of an open listener of a published port; may be repeated.
    #[arg(long)]
    publish: Vec<i32>,
}

/// What `lab up` writes for its supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LabFile {
    pub(crate) config: Config,
    /// How many nodes there are to be at first.
    pub(crate) nodes: u32,
    /// The binary of podwire's CNI plugin.
    pub(crate) plugin: PathBuf,
    /// The user who may read the kubeconfig, who called sudo.
    pub(crate) owner: Option<(u32, u32)>,
}

/// Progress of a lab's start, one line of JSON each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// The network is there.
    Underlay,
    /// The API server answers.
    ControlPlane,
    /// All nodes were started; that was all.
    Nodes,
    /// It ends here.
    Failed(String),
}

/// Why a supervisor ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the machine is not as it should be.
    #[error("cannot {action}: {source}")]
    System {
        /// What was being done.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] mount::Error),
    /// The underlay could not be made.
    #[error("cannot make the lab's network: {0}")]
    Underlay(String),
    /// The way to the machine's uplink could not be opened.
    #[error("cannot open the lab to the machine's uplink: {0}")]
    Internet(String),
    /// The control plane ended before it ever answered.
    #[error("the control plane did not start ({how}); {path} ends with:\n{tail}", path = path.display())]
    ControlPlane {
        /// How it ended.
        how: String,
        /// Its log.
        path: PathBuf,
        /// The end of its log.
        tail: String,
    },
}

fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::System { action, source }
}

impl From<underlay::Error> for Error {
    fn from(error: underlay::Error) -> Self {
        Self::Underlay(error.to_string())
    }
}

/// What the deciding thread is told.
enum Event {
    Ended(Pid, WaitStatus),
    Ready,
    Asked(Request, UnixStream),
}

struct Node {
    name: String,
    number: u32,
    /// Its subnet of the underlay, from 0.
    subnet: u32,
    /// Its back end, where that is not the lab's.
    backend: Option<Backend>,
    service: Service,
    /// Its standard input while it runs.
    orders: Option<PipeWriter>,
    /// Who waits for its end.
    removing: Option<UnixStream>,
}

impl Node {
    /// Tells its first process what changes; `false` if it does not run: it is
    /// told at its start.
    fn tell(&mut self, order: &Order) -> Result<bool, String> {
        let (Some(orders), Some(_)) = (&mut self.orders, self.service.process()) else {
            return Ok(false);
        };
        let mut line = serde_json::to_vec(order).map_err(|error| error.to_string())?;
        line.push(b'\n');
        orders
            .write_all(&line)
            .map_err(|error| format!("cannot tell {}: {error}", self.name))?;
        Ok(true)
    }
}

struct Supervisor {
    paths: Paths,
    file: LabFile,
    reaper: Reaper,
    events: Sender<Event>,
    underlay: Underlay,
    api: Vec<TcpListener>,
    loopback: TcpListener,
    port: u16,
    published: Vec<OwnedFd>,
    control_plane: Service,
    outside: Service,
    nodes: BTreeMap<u32, Node>,
    /// The control plane has answered once: nodes may run.
    ready: bool,
    /// The highest number a node ever had.
    highest: u32,
}

/// Runs a lab. Returns only when it can't go on; all its processes end with it.
///
/// # Errors
/// When the lab could not be started.
pub fn run(options: &Options) -> Result<(), Error> {
    let report = take_inherited(options.report)
        .map(File::from)
        .map_err(system("take over the pipe"))?;
    let result = lead(options, &report);
    if let Err(error) = &result {
        tracing::error!("{error}");
        tell(&report, &Report::Failed(error.to_string()));
    }
    result
}

/// Whoever brought the lab up may be gone: then nobody wants to know.
fn tell(mut report: &File, what: &Report) {
    if let Ok(mut line) = serde_json::to_vec(what) {
        line.push(b'\n');
        let _ = report.write_all(&line);
    }
}

fn lead(options: &Options, report: &File) -> Result<(), Error> {
    let paths = Paths::of(&options.name);
    // Held until this process ends.
    let mut lock = take_inherited(options.lock)
        .map(Lock::from_inherited)
        .map_err(system("take over the lock"))?;
    lock.sign().map_err(system("sign the lock"))?;
    let published = options
        .publish
        .iter()
        .map(|number| take_inherited(*number))
        .collect::<io::Result<Vec<_>>>()
        .map_err(system("take over a listener"))?;
    let file: LabFile = fs::read(paths.config())
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .map_err(system(format!("read {}", paths.config().display())))?;

    mount::make_private(Path::new("/"))?;
    // Of this PID namespace from here on.
    mount::proc(Path::new("/proc"))?;
    mount::tmpfs(&paths.files(), "mode=0755")?;

    let (events, received) = mpsc::channel();
    listen(&paths, events.clone())?;
    // From here on the lab can be taken down by its lock and outlives the
    // command that brought it up.
    rustix::process::set_parent_process_death_signal(None)
        .map_err(|errno| system("outlive the parent")(errno.into()))?;

    let ended = events.clone();
    let reaper = Reaper::start(move |pid, status| {
        // The receiver lives as long as this process.
        let _ = ended.send(Event::Ended(pid, status));
    })
    .map_err(system("start a thread"))?;
    let underlay = Underlay::create(&file.config)?;
    if file.config.internet {
        internet::open(&file.config, underlay.router())
            .map_err(|error| Error::Internet(error.to_string()))?;
    }
    let api = underlay.api_listeners()?;
    let loopback =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(system("listen on 127.0.0.1"))?;
    let port = loopback
        .local_addr()
        .map_err(system("listen on 127.0.0.1"))?
        .port();
    tell(report, &Report::Underlay);

    let mut supervisor = Supervisor {
        paths,
        file,
        reaper,
        events,
        underlay,
        api,
        loopback,
        port,
        published,
        control_plane: Service::new("control-plane"),
        outside: Service::new("outside"),
        nodes: BTreeMap::new(),
        ready: false,
        highest: 0,
    };
    for _ in 0..supervisor.file.nodes {
        supervisor
            .add_node(None, None, None)
            .map_err(Error::Underlay)?;
    }
    supervisor.serve(&received, report)
}

/// Takes connections to `control.sock`, each on a thread of its own until its
/// request is read. The socket's mode lets root alone connect; credentials
/// would tell no more, since a caller from outside this PID namespace has no
/// number in it.
fn listen(paths: &Paths, events: Sender<Event>) -> Result<(), Error> {
    let path = paths.control();
    let action = || format!("listen on {}", path.display());
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(system(action())(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(system(action()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(system(action()))?;
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let events = events.clone();
            let read = move || match protocol::read_request(&stream) {
                // The receiver lives as long as this process.
                Ok(request) => drop(events.send(Event::Asked(request, stream))),
                Err(error) => answer(&stream, &Answer::Refused(error.to_string()), None),
            };
            if let Err(error) = std::thread::Builder::new()
                .name("control".into())
                .spawn(read)
            {
                tracing::error!("cannot start a thread: {error}");
            }
        }
    };
    std::thread::Builder::new()
        .name("listener".into())
        .spawn(accept)
        .map(drop)
        .map_err(system("start a thread"))
}

/// Who asked may be gone, which is no trouble of the lab.
fn answer(stream: &UnixStream, answer: &Answer, file: Option<&OwnedFd>) {
    if let Err(error) = protocol::send_answer(stream, answer, file.map(AsFd::as_fd)) {
        tracing::info!("cannot answer on the control socket: {error}");
    }
}

impl Supervisor {
    fn serve(mut self, received: &Receiver<Event>, report: &File) -> Result<(), Error> {
        loop {
            self.start_what_is_due();
            let next = [self.control_plane.due(), self.outside.due()]
                .into_iter()
                .chain(
                    self.nodes
                        .values()
                        .filter(|_| self.ready)
                        .map(|node| node.service.due()),
                )
                .flatten()
                .min();
            let event = match next {
                Some(due) => received.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => received.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Ended(pid, status)) => self.ended(pid, status)?,
                Ok(Event::Ready) => {
                    if !self.ready {
                        self.ready = true;
                        tell(report, &Report::ControlPlane);
                        self.start_what_is_due();
                        tell(report, &Report::Nodes);
                    }
                }
                Ok(Event::Asked(request, stream)) => self.asked(request, stream),
                // Not possible while this struct holds a sender.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        let mut results = Vec::new();
        if self.control_plane.is_due(now) {
            let process = self.start_control_plane();
            results.push(self.control_plane.started(process, now));
        }
        if self.outside.is_due(now) {
            let process = self.start_outside();
            results.push(self.outside.started(process, now));
        }
        if self.ready {
            let due: Vec<u32> = self
                .nodes
                .values()
                .filter(|node| node.service.is_due(now))
                .map(|node| node.number)
                .collect();
            for number in due {
                let process = self.start_node(number);
                if let Some(node) = self.nodes.get_mut(&number) {
                    results.push(node.service.started(process, now));
                }
            }
        }
        for error in results.into_iter().filter_map(Result::err) {
            tracing::error!("cannot start {error}");
        }
    }

    fn spawn(&self, launch: Launch) -> Result<Process, String> {
        self.reaper
            .spawn(launch)
            .map(|child| child.process)
            .map_err(|error| error.to_string())
    }

    /// A program of this executable with its output in a log of its own.
    fn launch(&self, log: &str) -> io::Result<Launch> {
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.paths.log(log))?;
        Ok(Launch::this_executable()
            .arg0("podwire")
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out))
    }

    fn start_control_plane(&self) -> Result<Process, String> {
        let launch = || -> io::Result<Launch> {
            let (ready, told) = io::pipe()?;
            let mut launch = self
                .launch("control-plane")?
                .args(["control-plane", "--name", &self.file.config.name])
                .inherit_as("--ready", told.into())
                .inherit_as("--loopback", self.loopback.try_clone()?.into());
            for listener in &self.api {
                launch = launch.inherit_as("--underlay", listener.try_clone()?.into());
            }
            for listener in &self.published {
                launch = launch.inherit_as("--publish", listener.try_clone()?);
            }
            let events = self.events.clone();
            std::thread::Builder::new()
                .name("ready".into())
                .spawn(move || {
                    let mut line = String::new();
                    if BufReader::new(ready)
                        .read_line(&mut line)
                        .is_ok_and(|length| length > 0)
                    {
                        // The receiver lives as long as this process.
                        let _ = events.send(Event::Ready);
                    }
                })?;
            Ok(launch)
        };
        self.spawn(launch().map_err(|error| error.to_string())?)
    }

    fn start_outside(&self) -> Result<Process, String> {
        let namespace = self
            .underlay
            .namespace("outside")
            .ok_or("there is no outside")?;
        let launch = self
            .launch("outside")
            .and_then(|launch| {
                Ok(launch
                    .args(["toolbox", "serve", "--name", "outside"])
                    .args(["--http", "80", "--http", "8080", "--tcp", "7", "--udp", "7"])
                    .join(Namespace::Network, handle(namespace)?))
            })
            .map_err(|error| error.to_string())?;
        self.spawn(launch)
    }

    fn start_node(&mut self, number: u32) -> Result<Process, String> {
        let Some(node) = self.nodes.get_mut(&number) else {
            return Err(format!("there is no node {number}"));
        };
        let (orders, writer) = io::pipe().map_err(|error| error.to_string())?;
        node.orders = Some(writer);
        let (name, subnet) = (node.name.clone(), node.subnet);
        let config = &self.file.config;
        let backend = node.backend.unwrap_or(config.backend);
        let addresses = config.node(number, subnet);
        let namespace = self
            .underlay
            .connect_node(&name, subnet, &addresses)
            .map_err(|error| error.to_string())?;
        let spec = Spec {
            lab: config.name.clone(),
            node: name.clone(),
            zone: format!("zone-{}", 1 + (number + 1) % 2),
            addresses: addresses.iter().map(ipnet::IpNet::addr).collect(),
            cluster: config.cluster.clone(),
            service: config.service.clone(),
            dns: config.cluster_dns(),
            agent_dns: config.dns,
            attach: config.attach,
            backend,
            cross_subnet: config.cross_subnet,
            fast_path: config.fast_path,
            proxy: config.proxy,
            cni: config.cni.clone(),
            plugin: self.file.plugin.clone(),
            internet: config.internet,
        };
        let spec = serde_json::to_string(&spec).map_err(|error| error.to_string())?;
        let launch = self
            .launch(&name)
            .and_then(|launch| {
                Ok(launch
                    .args(["lab-node", "--spec", &spec])
                    .stdin(orders)
                    .join(Namespace::Network, handle(&namespace)?)
                    .unshare([
                        Namespace::Pid,
                        Namespace::Mount,
                        Namespace::Uts,
                        Namespace::Ipc,
                    ]))
            })
            .map_err(|error| error.to_string())?;
        // The namespace lives on in the node alone.
        self.spawn(launch)
    }

    fn ended(&mut self, pid: Pid, status: WaitStatus) -> Result<(), Error> {
        let now = Instant::now();
        if self.control_plane.ended(pid, now) {
            let how = describe(status);
            tracing::warn!("the control plane ended: {how}");
            if !self.ready {
                let path = self.paths.log("control-plane");
                let text = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                return Err(Error::ControlPlane {
                    how,
                    path,
                    tail: lines[lines.len().saturating_sub(10)..].join("\n"),
                });
            }
        } else if self.outside.ended(pid, now) {
            tracing::warn!("the outside world ended: {}", describe(status));
        } else if let Some(node) = self
            .nodes
            .values_mut()
            .find(|node| node.service.process().is_some_and(|own| own.pid() == pid))
        {
            node.service.ended(pid, now);
            let number = node.number;
            if node.removing.is_some() {
                self.removed(number);
            } else {
                tracing::warn!("{} ended: {}", node.name, describe(status));
            }
        }
        Ok(())
    }

    fn add_node(
        &mut self,
        name: Option<String>,
        subnet: Option<u32>,
        backend: Option<Backend>,
    ) -> Result<NodeStatus, String> {
        let subnets = self.file.config.subnets;
        if let Some(subnet) = subnet.filter(|subnet| *subnet >= subnets) {
            return Err(format!(
                "there is no subnet {}; the lab's are numbered from 1 to {subnets}",
                subnet.saturating_add(1)
            ));
        }
        let room = self.file.config.room();
        let taken = |name: &str| self.nodes.values().any(|node| node.name == name);
        let wanted = match &name {
            Some(name) if !is_label(name) => {
                return Err(format!(
                    "{name:?} is no node name: lower-case letters, digits and dashes"
                ));
            }
            Some(name) if taken(name) => return Err(format!("there is a node {name} already")),
            Some(name) if self.underlay.namespace(name).is_some() => {
                return Err(format!("{name} is the name of another part of the lab"));
            }
            Some(name) => node_number(name),
            None => None,
        };
        // A number that was never used comes first: others may remember the
        // addresses of an old one for a while.
        let free = |number: &u32| !self.nodes.contains_key(number);
        let number = wanted
            .into_iter()
            .chain(self.highest + 1..=room)
            .chain(1..=room)
            .filter(|number| (1..=room).contains(number))
            .find(free)
            .ok_or_else(|| {
                format!(
                    "the lab's ranges hold {room} nodes and all are taken; remove one, or bring a \
                     lab up with larger ranges"
                )
            })?;
        let name = name.unwrap_or_else(|| format!("node-{number}"));
        if self.nodes.values().any(|node| node.name == name) {
            return Err(format!("there is a node {name} already; give another name"));
        }
        self.highest = self.highest.max(number);
        let node = Node {
            service: Service::new(name.clone()),
            name,
            number,
            subnet: subnet.unwrap_or_else(|| self.file.config.subnet_of(number)),
            backend,
            orders: None,
            removing: None,
        };
        let status = self.status(&node);
        self.nodes.insert(number, node);
        Ok(status)
    }

    fn status(&self, node: &Node) -> NodeStatus {
        let config = &self.file.config;
        NodeStatus {
            name: node.name.clone(),
            addresses: config
                .node(node.number, node.subnet)
                .iter()
                .map(ipnet::IpNet::addr)
                .collect(),
            backend: node.backend.unwrap_or(config.backend),
            running: node.service.process().is_some(),
        }
    }

    /// Changes the back end of a node, or of all and those to come. Returns the
    /// nodes whose agents were told.
    fn change_backend(
        &mut self,
        backend: Backend,
        node: Option<&str>,
    ) -> Result<Vec<String>, String> {
        if node.is_some_and(|name| !self.nodes.values().any(|known| known.name == name)) {
            return Err(no_node(node.unwrap_or_default()));
        }
        if node.is_none() {
            self.file.config.backend = backend;
            self.write_config()?;
        }
        let mut told = Vec::new();
        for known in self.nodes.values_mut() {
            if node.is_some_and(|name| name != known.name) {
                continue;
            }
            let before = known.backend;
            known.backend = node.map(|_| backend);
            match known.tell(&Order::Backend(backend)) {
                Ok(true) => told.push(known.name.clone()),
                Ok(false) => {}
                Err(why) => {
                    known.backend = before;
                    return Err(why);
                }
            }
        }
        Ok(told)
    }

    /// Changes the proxy of all nodes and those to come. Returns the nodes whose
    /// agents were told.
    fn change_proxy(&mut self, proxy: Proxy) -> Result<Vec<String>, String> {
        self.file.config.proxy = proxy;
        self.write_config()?;
        let mut told = Vec::new();
        for known in self.nodes.values_mut() {
            if known.tell(&Order::Proxy(proxy))? {
                told.push(known.name.clone());
            }
        }
        Ok(told)
    }

    /// Keeps the configuration for later starts of the control plane and for the
    /// commands that read it.
    fn write_config(&self) -> Result<(), String> {
        let path = self.paths.config();
        serde_json::to_vec_pretty(&self.file)
            .map_err(io::Error::other)
            .and_then(|json| fs::write(&path, json))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    fn remove_node(&mut self, name: &str, stream: UnixStream) {
        let Some(node) = self.nodes.values_mut().find(|node| node.name == name) else {
            return answer(&stream, &Answer::Refused(no_node(name)), None);
        };
        if node.removing.is_some() {
            let text = format!("{name} is being removed already");
            return answer(&stream, &Answer::Refused(text), None);
        }
        let number = node.number;
        node.removing = Some(stream);
        match node.service.process().map(|own| own.signal(Signal::KILL)) {
            // The rest is done when it has ended.
            Some(Ok(())) => {}
            Some(Err(error)) => {
                if let Some(stream) = node.removing.take() {
                    answer(&stream, &Answer::Refused(error.to_string()), None);
                }
            }
            None => self.removed(number),
        }
    }

    /// All processes of a node have ended, and nothing starts it again.
    fn removed(&mut self, number: u32) {
        let Some(node) = self.nodes.remove(&number) else {
            return;
        };
        let mut problems = Vec::new();
        if let Err(error) = self.underlay.disconnect_node(&node.name) {
            problems.push(error.to_string());
        }
        let files = self.paths.node(&node.name);
        if let Err(error) = remove_tree(&files) {
            problems.push(format!("{}: {error}", files.display()));
        }
        if let Some(cgroup) = cgroup::of_lab(&self.file.config.name)
            && let Err(error) = cgroup::remove(&cgroup.join(&node.name))
        {
            problems.push(format!("{}: {error}", cgroup.display()));
        }
        for problem in &problems {
            tracing::error!("removing {}: {problem}", node.name);
        }
        if let Some(stream) = node.removing {
            answer(&stream, &Answer::Removed, None);
        }
    }

    fn asked(&mut self, request: Request, stream: UnixStream) {
        match request {
            Request::Status => {
                let nodes = self.nodes.values().map(|node| self.status(node)).collect();
                let status = Status {
                    port: self.port,
                    nodes,
                };
                answer(&stream, &Answer::Status(status), None);
            }
            Request::Enter { name } => match self.entrance(&name) {
                Ok((kind, file)) => answer(&stream, &kind, Some(&file)),
                Err(why) => answer(&stream, &Answer::Refused(why), None),
            },
            Request::Network { name } => match self.network(&name) {
                Ok(file) => answer(&stream, &Answer::Network, Some(&file)),
                Err(why) => answer(&stream, &Answer::Refused(why), None),
            },
            Request::Backend { backend, node } => {
                match self.change_backend(backend, node.as_deref()) {
                    Ok(told) => answer(&stream, &Answer::Told(told), None),
                    Err(why) => answer(&stream, &Answer::Refused(why), None),
                }
            }
            Request::Proxy { proxy } => match self.change_proxy(proxy) {
                Ok(told) => answer(&stream, &Answer::Told(told), None),
                Err(why) => answer(&stream, &Answer::Refused(why), None),
            },
            Request::AddNode {
                name,
                subnet,
                backend,
            } => {
                let added = self.add_node(name, subnet, backend);
                self.start_what_is_due();
                match added {
                    Ok(status) => answer(&stream, &Answer::Added(status), None),
                    Err(why) => answer(&stream, &Answer::Refused(why), None),
                }
            }
            Request::RemoveNode { name } => self.remove_node(&name, stream),
        }
    }

    fn entrance(&self, name: &str) -> Result<(Answer, OwnedFd), String> {
        if let Some(namespace) = self.underlay.namespace(name) {
            let file = handle(namespace).map_err(|error| error.to_string())?;
            return Ok((Answer::Network, file));
        }
        let file = self
            .first_process(name)?
            .pidfd()
            .map_err(|error| error.to_string())?;
        Ok((Answer::Process, file))
    }

    fn network(&self, name: &str) -> Result<OwnedFd, String> {
        Namespace::Network
            .of(self.first_process(name)?.pid())
            .map_err(|error| error.to_string())
    }

    fn first_process(&self, node: &str) -> Result<&Process, String> {
        self.nodes
            .values()
            .find(|known| known.name == node)
            .ok_or_else(|| no_node(node))?
            .service
            .process()
            .ok_or_else(|| format!("{node} does not run right now; its log says why"))
    }
}

fn no_node(name: &str) -> String {
    format!("there is no node {name}; podwire lab status lists them")
}

fn handle(namespace: &NetworkNamespace) -> io::Result<OwnedFd> {
    namespace.as_fd().try_clone_to_owned()
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Hands a file on together with the argument that tells its number.
trait InheritAs {
    fn inherit_as(self, option: &str, file: OwnedFd) -> Self;
}

impl InheritAs for Launch {
    fn inherit_as(self, option: &str, file: OwnedFd) -> Self {
        self.arg(format!("{option}={}", file.as_raw_fd()))
            .inherit(file)
    }
}
