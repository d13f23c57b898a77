//! Bringing a lab up: check everything, start the supervisor, apply the
//! manifests, wait until all is ready.

use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use kube::api::{Api, DynamicObject, ListParams};
use linux::process::{Child, Launch, Namespace};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::cluster::{self, Cluster, Follow, api_resource, text};
use crate::config::{
    Attach, Backend, Config, Dns, Family, FastPath, ForeignCni, Invalid, Proxy, Publish, Wanted,
};
use crate::lock::{self, Lock, State};
use crate::manifests::{self, Object};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::protocol::{Answer, Request};
use crate::readiness::{Problem, problems};
use crate::summary::Summary;
use crate::supervisor::{LabFile, Report};
use crate::{apply, down, exec, features, publish};

/// The command line of `lab up`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many nodes; a running lab gets those it lacks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,
    /// Apply the manifests of a file, a folder, or - for standard input; may be
    /// repeated
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    file: Vec<PathBuf>,
    /// How pods are attached to their node [default: bridge]
    #[arg(long, value_enum)]
    attach: Option<Attach>,
    /// IP families [default: dual]
    #[arg(long, value_enum)]
    family: Option<Family>,
    /// Range of the pods' addresses, one a family [default: 10.200.0.0/16 and
    /// fd00:200::/48]
    #[arg(long, value_name = "CIDR")]
    cluster_cidr: Vec<String>,
    /// Range of the Services' addresses, one a family [default: 10.96.0.0/12
    /// and fd00:96::/112]
    #[arg(long, value_name = "CIDR")]
    service_cidr: Vec<String>,
    /// Range of the nodes' addresses, one a family [default: 192.168.64.0/24
    /// and fd00:64::/64]
    #[arg(long, value_name = "CIDR")]
    underlay: Vec<String>,
    /// Prefix length of a node's range of the pods' addresses, one a family
    /// [default: 24 and 64]
    #[arg(long, value_name = "LENGTH")]
    node_mask: Vec<String>,
    /// Deal the nodes out to this many subnets with a router between them; each
    /// subnet is the range behind the one before [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    subnets: Option<u32>,
    /// How pods' packets get from node to node; podwire lab backend changes it
    /// [default: host-gw]
    #[arg(long, value_enum, conflicts_with = "cni_conf")]
    backend: Option<Backend>,
    /// What brings Services into the nodes' kernel; podwire lab proxy changes it
    /// [default: nftables]
    #[arg(long, value_enum)]
    proxy: Option<Proxy>,
    /// Send directly within a subnet and by the tunnel across subnets
    #[arg(long, conflicts_with = "cni_conf")]
    cross_subnet: bool,
    /// Whether established connections between pods go past the kernel's IP stack;
    /// auto: where the kernel can do it [default: auto]
    #[arg(long, value_enum)]
    fast_path: Option<FastPath>,
    /// Make a Service's TCP port reachable on this machine's 127.0.0.1 and ::1
    /// (8080:web:80 publishes port 80 of default/web as 8080); may be repeated
    #[arg(long, value_name = "PORT:[NAMESPACE/]SERVICE:PORT")]
    publish: Vec<String>,
    /// Who answers the cluster's DNS [default: replace]
    #[arg(long, value_enum)]
    dns: Option<Dns>,
    /// Let pods reach what this machine reaches by its uplink, by NAT; never
    /// private addresses, this machine or other labs
    #[arg(long)]
    internet: bool,
    /// Another project's CNI configuration lists instead of podwire's
    #[arg(long, value_name = "DIR", requires = "cni_bin")]
    cni_conf: Option<PathBuf>,
    /// The CNI plugins these need
    #[arg(long, value_name = "DIR", requires = "cni_conf")]
    cni_bin: Option<PathBuf>,
    /// How long to wait until everything is ready; 0 does not wait
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = toolbox::duration::parse)]
    wait_timeout: Duration,
    /// Keep what was made when something fails or on Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Why a lab did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Manifests(#[from] manifests::Error),
    #[error(transparent)]
    Taken(#[from] publish::Taken),
    #[error(transparent)]
    Missing(#[from] features::Missing),
    #[error("cannot {action}: {source}")]
    System { action: String, source: io::Error },
    #[error(transparent)]
    Down(#[from] down::Error),
    #[error("cannot start the lab: {0}")]
    Start(String),
    #[error(
        "the lab {name} runs already, with {difference}; take it down first: podwire lab down --name {name}"
    )]
    Different { name: String, difference: String },
    #[error(transparent)]
    Ask(#[from] exec::Error),
    #[error(transparent)]
    Api(#[from] cluster::Error),
    #[error(transparent)]
    Apply(#[from] apply::Error),
    #[error("interrupted")]
    Interrupted,
}

fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let action = action.into();
    move |source| Error::System { action, source }
}

/// What became of it.
pub(crate) struct Outcome {
    pub(crate) summary: Summary,
    pub(crate) problems: Vec<Problem>,
    pub(crate) waited: bool,
}

/// Brings a lab up, or brings a running one up to date.
pub(crate) async fn up(
    name: &str,
    options: &Options,
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    let (config, objects) = check(name, options)?;
    let paths = Paths::of(name);
    let nodes = options.nodes.unwrap_or(2);

    let machine = features::probe()?;
    match Lock::take(paths.dir()).map_err(system(format!("lock {}", paths.lock().display())))? {
        State::Held => {
            same(name, options, &paths)?;
            progress.step("the lab runs already");
            grow(&paths, options.nodes)?;
            finish(name, &paths, options, &objects, progress).await
        }
        State::Free(lock) => {
            let published = match publish::bind(&config.publish) {
                Ok(published) => published,
                Err(taken) => {
                    down::remove_directory(&paths, lock)?;
                    return Err(taken.into());
                }
            };
            let made = async {
                let plugin = machine.plugin;
                start(lock, published, &config, nodes, plugin, &paths, progress).await?;
                finish(name, &paths, options, &objects, progress).await
            };
            let result = tokio::select! {
                result = made => result,
                () = interrupted() => Err(Error::Interrupted),
            };
            if result.is_err() && !options.keep {
                progress.step("taking down what was made");
                down::down(name)?;
            }
            result
        }
    }
}

/// Ctrl-C, or a polite request to end.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        // Then the signal ends this process, and `down` cleans up.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Checks the options and the manifests, without a look at the machine.
fn check(name: &str, options: &Options) -> Result<(Config, Vec<Object>), Error> {
    let mut problems = Vec::new();
    let cni = match (&options.cni_conf, &options.cni_bin) {
        (Some(conf), Some(bin)) => {
            let directory = |option: &str, path: &PathBuf| {
                fs::canonicalize(path)
                    .and_then(|path| {
                        fs::read_dir(&path)?;
                        Ok(path)
                    })
                    .map_err(|error| format!("{option} {}: {error}", path.display()))
            };
            match (directory("--cni-conf", conf), directory("--cni-bin", bin)) {
                (Ok(conf), Ok(bin)) => Some(ForeignCni { conf, bin }),
                (conf, bin) => {
                    problems.extend(conf.err());
                    problems.extend(bin.err());
                    None
                }
            }
        }
        _ => None,
    };
    let config = Config::new(&Wanted {
        name: name.to_owned(),
        family: options.family.unwrap_or_default(),
        attach: options.attach.unwrap_or_default(),
        underlay: options.underlay.clone(),
        cluster: options.cluster_cidr.clone(),
        service: options.service_cidr.clone(),
        node_mask: options.node_mask.clone(),
        subnets: options.subnets,
        backend: options.backend.unwrap_or_default(),
        cross_subnet: options.cross_subnet,
        fast_path: options.fast_path.unwrap_or_default(),
        proxy: options.proxy.unwrap_or_default(),
        publish: options.publish.clone(),
        dns: options.dns.unwrap_or_default(),
        internet: options.internet,
        cni,
        nodes: options.nodes.unwrap_or(2),
    });
    let config = match config {
        Ok(config) if problems.is_empty() => config,
        Ok(_) => return Err(Invalid(problems).into()),
        Err(Invalid(mut more)) => {
            problems.append(&mut more);
            return Err(Invalid(problems).into());
        }
    };
    Ok((config, manifests::load(&options.file)?))
}

/// Refuses options that a running lab does not have.
fn same(name: &str, options: &Options, paths: &Paths) -> Result<(), Error> {
    let running: LabFile = fs::read(paths.config())
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .map_err(system(format!("read {}", paths.config().display())))?;
    let running = running.config;
    let mut differences = Vec::new();
    if options
        .family
        .is_some_and(|family| family != running.family)
    {
        differences.push("another --family".to_owned());
    }
    if options
        .attach
        .is_some_and(|attach| attach != running.attach)
    {
        differences.push(format!("--attach {}", running.attach));
    }
    for (option, given, has) in [
        ("--underlay", &options.underlay, &running.underlay),
        ("--cluster-cidr", &options.cluster_cidr, &running.cluster),
        ("--service-cidr", &options.service_cidr, &running.service),
    ] {
        let has: Vec<String> = has.iter().map(ToString::to_string).collect();
        let differs = |text: &str| !has.iter().any(|range| range == text.trim());
        if given.iter().flat_map(|text| text.split(',')).any(differs) {
            differences.push(format!("{option} {}", has.join(",")));
        }
    }
    let masks: Vec<String> = running.node_masks.iter().map(u8::to_string).collect();
    let differs = |text: &str| {
        !masks
            .iter()
            .any(|mask| mask == text.trim().trim_start_matches('/'))
    };
    if options
        .node_mask
        .iter()
        .flat_map(|text| text.split(','))
        .any(differs)
    {
        differences.push(format!("--node-mask {}", masks.join(",")));
    }
    if options
        .subnets
        .is_some_and(|subnets| subnets != running.subnets)
    {
        differences.push(format!("--subnets {}", running.subnets));
    }
    if options
        .backend
        .is_some_and(|backend| backend != running.backend)
    {
        differences.push(format!(
            "--backend {} (which podwire lab backend changes)",
            running.backend
        ));
    }
    if options.proxy.is_some_and(|proxy| proxy != running.proxy) {
        differences.push(format!(
            "--proxy {} (which podwire lab proxy changes)",
            running.proxy
        ));
    }
    if options.cross_subnet && !running.cross_subnet {
        differences.push("no --cross-subnet".to_owned());
    }
    if options
        .fast_path
        .is_some_and(|fast_path| fast_path != running.fast_path)
    {
        differences.push(format!("--fast-path {}", running.fast_path));
    }
    let publishes: Vec<Publish> = options
        .publish
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    if publishes.iter().any(|one| !running.publish.contains(one)) {
        differences.push("another --publish".to_owned());
    }
    if options.dns.is_some_and(|dns| dns != running.dns) {
        differences.push(format!("--dns {}", running.dns));
    }
    if options.internet && !running.internet {
        differences.push("no --internet".to_owned());
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Error::Different {
        name: name.to_owned(),
        difference: differences.join(" and "),
    })
}

/// Adds the nodes a running lab lacks.
fn grow(paths: &Paths, wanted: Option<u32>) -> Result<(), Error> {
    let (Answer::Status(status), _) = exec::ask(paths, &Request::Status)? else {
        return Ok(());
    };
    let has = u32::try_from(status.nodes.len()).unwrap_or(u32::MAX);
    for _ in has..wanted.unwrap_or(has) {
        let next = Request::AddNode {
            name: None,
            subnet: None,
            backend: None,
        };
        exec::ask(paths, &next)?;
    }
    Ok(())
}

/// Starts the supervisor and waits until the nodes were started.
async fn start(
    mut lock: Lock,
    published: Vec<TcpListener>,
    config: &Config,
    nodes: u32,
    plugin: PathBuf,
    paths: &Paths,
    progress: &mut Progress,
) -> Result<(), Error> {
    progress.step("making the network");
    down::outlast(paths)?;
    lock.sign().map_err(system("sign the lock"))?;
    down::clean(&config.name, paths)?;
    for (path, mode) in [
        (paths.logs(), 0o755),
        (paths.files(), 0o755),
        (paths.pki(), 0o700),
        (paths.images(), 0o755),
    ] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(system(format!("make {}", path.display())))?;
    }
    let file = LabFile {
        config: config.clone(),
        nodes,
        plugin,
        owner: owner(),
    };
    let json = serde_json::to_vec_pretty(&file).map_err(|e| Error::Start(e.to_string()))?;
    fs::write(paths.config(), json)
        .map_err(system(format!("write {}", paths.config().display())))?;

    let (reports, report) = io::pipe().map_err(system("make a pipe"))?;
    let mut child = launch(config, &lock, published, report.into(), paths)?;
    // The supervisor holds it from here on.
    drop(lock);
    let mut reports = read_reports(reports)?;
    loop {
        match reports.recv().await {
            Some(Report::Underlay) => progress.step("starting the control plane"),
            Some(Report::ControlPlane) => progress.step("starting the nodes"),
            Some(Report::Nodes) => return Ok(()),
            Some(Report::Failed(why)) => return Err(Error::Start(why)),
            None => {
                let how = child
                    .try_wait()
                    .ok()
                    .flatten()
                    .map_or_else(|| "it ended".to_owned(), |status| status.to_string());
                return Err(lost(paths, &how));
            }
        }
    }
}

fn launch(
    config: &Config,
    lock: &Lock,
    published: Vec<TcpListener>,
    report: OwnedFd,
    paths: &Paths,
) -> Result<Child, Error> {
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(paths.log("supervisor"))
        .map_err(system("open the supervisor's log"))?;
    let lock = lock.handle().map_err(system("hand the lock on"))?;
    let mut launch = Launch::this_executable()
        .arg0("podwire")
        .args(["lab-supervisor", "--name", &config.name])
        .arg(format!("--lock={}", lock.as_raw_fd()))
        .arg(format!("--report={}", report.as_raw_fd()));
    for listener in published {
        launch = launch
            .arg(format!("--publish={}", listener.as_raw_fd()))
            .inherit(listener.into());
    }
    launch
        .inherit(lock)
        .inherit(report)
        .stdin(Stdio::null())
        .stdout(
            log.try_clone()
                .map_err(system("open the supervisor's log"))?,
        )
        .stderr(log)
        .directory("/")
        .session()
        // Until it can be found by its lock: who kills this command now must
        // not leave something that nobody knows.
        .die_with_parent(Signal::KILL)
        .unshare([Namespace::Pid, Namespace::Mount])
        .spawn()
        .map_err(|error| Error::Start(error.to_string()))
}

fn read_reports(reports: PipeReader) -> Result<mpsc::UnboundedReceiver<Report>, Error> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new()
        .name("reports".into())
        .spawn(move || {
            for line in BufReader::new(reports).lines().map_while(Result::ok) {
                match serde_json::from_str(&line) {
                    // Nobody wants to know any more when this fails.
                    Ok(report) => drop(sender.send(report)),
                    Err(error) => tracing::debug!("{line}: {error}"),
                }
            }
        })
        .map_err(system("start a thread"))?;
    Ok(receiver)
}

/// Who called sudo.
fn owner() -> Option<(u32, u32)> {
    let number = |name: &str| std::env::var(name).ok()?.parse().ok();
    Some((number("SUDO_UID")?, number("SUDO_GID")?))
}

/// Applies the manifests and waits, as long as the lab lives.
async fn finish(
    name: &str,
    paths: &Paths,
    options: &Options,
    objects: &[Object],
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    tokio::select! {
        outcome = fill(name, paths, options, objects, progress) => outcome,
        gone = gone(paths) => {
            gone.map_err(system("watch the lab's first process"))?;
            Err(lost(paths, "it was killed or has failed"))
        }
    }
}

/// Waits until the lab's first process, the lock's holder, has ended.
async fn gone(paths: &Paths) -> io::Result<()> {
    let Some(process) = lock::holder(paths.dir())? else {
        return Ok(());
    };
    // The thread ends with the process it waits for, or with this command.
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("first process".into())
        .spawn(move || sender.send(process.wait_end(None)))?;
    match ended.await {
        Ok(Err(error)) => Err(io::Error::other(error)),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

fn lost(paths: &Paths, how: &str) -> Error {
    Error::Start(format!(
        "its first process is gone ({how}); {} may say why",
        paths.log("supervisor").display()
    ))
}

async fn fill(
    name: &str,
    paths: &Paths,
    options: &Options,
    objects: &[Object],
    progress: &mut Progress,
) -> Result<Outcome, Error> {
    let client = cluster::connect(&paths.kubeconfig()).await?;
    let nodes = node_names(paths)?;
    let deadline = Instant::now() + options.wait_timeout;
    let waited = !options.wait_timeout.is_zero();
    let mut follow = Follow::new(&client);
    let mut left = Vec::new();
    if waited {
        // Pods made before all nodes are ready would crowd on the first ones.
        progress.step("waiting for the nodes");
        left = wait(&mut follow, &nodes, &[], deadline, progress).await?;
    }
    if left.is_empty() && !objects.is_empty() {
        progress.step("applying the manifests");
        apply::apply(&client, objects).await?;
        if waited {
            progress.step("waiting until everything is ready");
            left = wait(&mut follow, &nodes, objects, deadline, progress).await?;
        }
    }
    let cluster = match waited {
        true => follow.seen().clone(),
        false => Cluster::list(&client).await?,
    };
    if !left.is_empty() {
        explain(&client, &mut left).await;
    }
    Ok(Outcome {
        summary: Summary::new(name, paths.kubeconfig(), &cluster, left.clone()),
        problems: left,
        waited,
    })
}

/// Waits until nothing is left to wait for, or until the deadline; what is left
/// then.
async fn wait(
    follow: &mut Follow,
    nodes: &[String],
    objects: &[Object],
    deadline: Instant,
    progress: &Progress,
) -> Result<Vec<Problem>, Error> {
    let mut left = problems(nodes, objects, follow.seen());
    while !left.is_empty() {
        match left.as_slice() {
            [first, rest @ ..] if !rest.is_empty() => progress.detail(format!(
                "waiting for {} and {} more",
                first.what,
                rest.len()
            )),
            _ => progress.detail(format!("waiting for {}", left[0].what)),
        }
        match tokio::time::timeout_at(deadline, follow.next()).await {
            Ok(changed) => left = problems(nodes, objects, changed?),
            Err(_) => return Ok(left),
        }
    }
    Ok(left)
}

/// The nodes the supervisor has.
pub(crate) fn node_names(paths: &Paths) -> Result<Vec<String>, exec::Error> {
    match exec::ask(paths, &Request::Status)? {
        (Answer::Status(status), _) => Ok(status.nodes.into_iter().map(|node| node.name).collect()),
        _ => Ok(Vec::new()),
    }
}

/// Adds the last warnings about the pods behind the problems.
pub(crate) async fn explain(client: &kube::Client, problems: &mut [Problem]) {
    let events: Api<DynamicObject> =
        Api::all_with(client.clone(), &api_resource("", "v1", "Event", "events"));
    // Without events the reasons are those of the objects.
    let Ok(events) = events.list(&ListParams::default()).await else {
        return;
    };
    let mut events: Vec<Value> = events
        .items
        .into_iter()
        .filter_map(|event| serde_json::to_value(event).ok())
        .filter(|event| text(event, "/type") == "Warning")
        .collect();
    let last_seen = |event: &Value| {
        let later = text(event, "/lastTimestamp");
        let seen = if later.is_empty() {
            text(event, "/eventTime")
        } else {
            later
        };
        seen.to_owned()
    };
    events.sort_by_key(last_seen);
    for problem in problems {
        let about: Vec<&Value> = events
            .iter()
            .filter(|event| {
                problem.pods.iter().any(|(namespace, name)| {
                    text(event, "/involvedObject/namespace") == namespace
                        && text(event, "/involvedObject/name") == name
                })
            })
            .collect();
        for event in about.iter().rev().take(3) {
            problem.why.push_str(&format!(
                "\n{}: {}",
                text(event, "/reason"),
                text(event, "/message")
            ));
        }
    }
}
