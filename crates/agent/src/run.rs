//! The agent's life: start, the loop, the end.

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use api::Event;
use cni::install::{self, ConfigList};
use ipam::NodeRanges;
use kube::Client;
use routing::Kernel;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use crate::admin::Admin;
use crate::cluster::{Member, Nodes, OwnState};
use crate::conntrack_watch::{self, Fill, LossReader};
use crate::dns::{self, Dns};
use crate::error::Error;
use crate::event_writer::{self, About, Recorder};
use crate::healthcheck::{self, Wanted};
use crate::inspection::Asked;
use crate::metrics::Metrics;
use crate::options::{FastPath, Options};
use crate::pods::Pods;
use crate::publish::Publisher;
use crate::worker::Problems;
use crate::{
    fast_path, feed, health, ipam_audit, kernel_events, policy_socket, privileges, proxy, routes,
    translate,
};

/// What the loop is told.
#[derive(Debug)]
pub(crate) enum News {
    /// Of a node.
    Node(Event<api::Node>),
    /// Of a pod.
    Pod(Event<api::Pod>),
    /// Routes were applied.
    Routes(routes::Report),
    /// Services were applied.
    Services(proxy::Report),
    /// An annotation of this node was written, or why not.
    Published(Result<(), String>),
    /// Something about DNS changed.
    Dns,
    /// It is time to try once more to write it.
    PublishAgain,
}

/// How often the fill of the connection table is looked at: the kernel tells
/// nobody.
const CONNTRACK: Duration = Duration::from_secs(30);
/// Before a CNI configuration that could not be written is tried again.
const REWRITE: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT. The data plane stays when it ends.
///
/// # Errors
/// When it cannot start: no permission, no usable configuration of the API
/// server, no netlink. An API server that cannot be reached is waited for.
pub fn run(options: Options) -> Result<(), Error> {
    run_until(options, async {
        let (Ok(mut terminate), Ok(mut interrupt)) = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) else {
            // Without handlers the signals' default ends the process, which is as well.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: ending, the data plane stays"),
            _ = interrupt.recv() => tracing::info!("SIGINT: ending, the data plane stays"),
        }
    })
}

/// Like [`run`], until `stop` is ready instead of a signal.
///
/// # Errors
/// As [`run`].
pub fn run_until(options: Options, stop: impl Future<Output = ()>) -> Result<(), Error> {
    if !privileges::may_change_network() {
        return Err(Error::NotPermitted);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Setup {
            what: "the event loop",
            source,
        })?;
    let mut threads = Vec::new();
    let result = runtime.block_on(agent(options, stop, &mut threads));
    // Everybody who could send a message to the threads ends here, and so do they.
    drop(runtime);
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the agent panicked");
        }
    }
    result
}

async fn agent(
    options: Options,
    stop: impl Future<Output = ()>,
    threads: &mut Vec<JoinHandle<()>>,
) -> Result<(), Error> {
    let client = api::client::connect(options.kubeconfig.as_deref()).await?;
    tracing::info!(
        node = %options.node,
        version = env!("CARGO_PKG_VERSION"),
        "podwire agent starts"
    );
    let (core, mut news) = unbounded_channel();
    let (routes, routes_inbox) = mpsc::channel();
    let (proxy, proxy_inbox) = mpsc::channel();

    // Notifications first, so that no change falls between reading and listening.
    let changes = kernel_events::subscribe()?;
    let (listening, stop_listening) = UnixStream::pair().map_err(|source| Error::Setup {
        what: "a socket pair",
        source,
    })?;
    let (to_routes, to_services) = (routes.clone(), proxy.clone());
    threads.push(thread("kernel-events", move || {
        kernel_events::run(changes, &stop_listening, &to_routes, &to_services);
    })?);
    let kernel = Kernel::open()?;
    let way = routes::Way {
        configured: options.backends(),
        settings: options.settings(),
        wireguard_key: options.wireguard_key.clone(),
        wireguard_port: options.wireguard_port,
        attach: options.attach,
        fast_path: options.fast_path,
        timeouts: crate::settings::Timeouts::of(&options),
        node: (*options.node).into(),
    };
    if let Some(period) = options.wireguard_rotate {
        let (routes, period) = (routes.clone(), period.0);
        tokio::spawn(async move {
            let mut due = tokio::time::interval(period);
            due.reset();
            loop {
                due.tick().await;
                if routes.send(routes::Message::Rotate).is_err() {
                    return;
                }
            }
        });
    }
    let reports = core.clone();
    // The thread of routes ends when nobody can tell it anything any more, that of
    // the fast path with the thread of routes.
    let to_routes = Arc::new(routes.clone());
    let mut jobs = None;
    if options.fast_path != FastPath::Off {
        let (sender, inbox) = mpsc::channel();
        let done = Arc::downgrade(&to_routes);
        threads.push(thread("fast-path", move || {
            fast_path::run(&inbox, |news| {
                if let Some(routes) = done.upgrade() {
                    let _ = routes.send(routes::Message::FastPath(news));
                }
            });
        })?);
        jobs = Some(sender);
    }
    let fast_path = to_routes;
    threads.push(thread("routes", move || {
        routes::run(kernel, way, jobs, &routes_inbox, &reports);
    })?);
    let status = health::Shared::default();
    let dns = dns::prepare(&options, &core);
    let metrics = Arc::new(Metrics::new(dns.as_ref().map(|dns| dns.shared.clone())));
    let (events, warnings) = Recorder::new();
    let context = proxy::Context {
        settings: options.proxy_settings(),
        known_ranges: options.service_cidr.clone(),
        routes: routes.clone(),
        reports: core.clone(),
        events: events.clone(),
        metrics: metrics.clone(),
        status: status.clone(),
    };
    let changed = Arc::new(proxy::Changed::default());
    let waiting = changed.clone();
    threads.push(thread("services", move || {
        proxy::run(&context, &proxy_inbox, &waiting);
    })?);

    tokio::spawn(event_writer::write(
        client.clone(),
        options.node.clone(),
        warnings,
    ));
    let (health_checks, told) = watch::channel(Wanted::default());
    tokio::spawn(healthcheck::run(told, status.clone(), events.clone()));
    if let Some(listener) = listen(options.health_bind, "health", "--health-bind").await {
        let (status, metrics) = (status.clone(), metrics.clone());
        tokio::spawn(health::serve(listener, status, metrics));
    }
    if let Some(listener) = listen(options.metrics_bind, "metrics", "--metrics-bind").await {
        tokio::spawn(health::serve_metrics(listener, metrics.clone()));
    }
    let mut admin = Admin::default();
    let told = status.clone();
    admin.add("/v1/status", move |question| {
        question.answer(&told.lock().snapshot(Instant::now()));
    });
    let to_routes = routes.clone();
    admin.add("/v1/routes", move |question| {
        // A thread that is gone drops the question, which is an answer too.
        let _ = to_routes.send(routes::Message::Snapshot(question));
    });
    let to_routes = routes.clone();
    admin.add("/v1/fdb", move |question| {
        let _ = to_routes.send(routes::Message::Forwarding(question));
    });
    let to_routes = routes.clone();
    admin.add("/v1/fast-path", move |question| {
        let _ = to_routes.send(routes::Message::AskFastPath(question));
    });
    for (path, asked) in [
        ("/v1/services", Asked::Services),
        ("/v1/simulation", Asked::Simulation),
    ] {
        let proxy = proxy.clone();
        admin.add(path, move |question| {
            // A thread that is gone drops the question, which is an answer too.
            let _ = proxy.send(proxy::Message::Ask(asked, question));
        });
    }
    if let Some(dns) = &dns {
        dns::start(dns, &options.dns, &mut admin);
    }
    let _admin = admin
        .serve(&options.admin_socket)
        // Nobody can look inside, which is no reason to leave the node without network.
        .inspect_err(|problem| tracing::warn!("{problem}; podwire inspect will not work"));
    let _policies = policy_socket::serve(&options.policy_socket, Arc::new(policy_socket::Nothing))
        .inspect_err(|problem| {
            tracing::warn!("{problem}; pods whose configuration waits for policies cannot start")
        });
    let (auditing, stop_auditing) = mpsc::channel();
    let (directory, attach) = (options.ipam_dir.clone(), options.attach);
    threads.push(thread("ipam-audit", move || {
        ipam_audit::run(&directory, attach, &stop_auditing);
    })?);
    let publisher = Publisher::new(client.clone(), &options.node, core.clone());
    let pods_unwatched = Some((client.clone(), core.clone()));
    feed::start(
        &client,
        core,
        proxy.clone(),
        changed,
        &feed::Watchers {
            node: &options.node,
            dns: dns.clone(),
            status: &status,
            metrics: &metrics,
        },
    );
    let mut core = Core {
        nodes: Nodes::new(&options.node),
        options,
        routes,
        proxy,
        sent: None,
        own_state: None,
        publisher,
        dns,
        pods: Pods::default(),
        pods_unwatched,
        routes_report: None,
        services_report: None,
        status,
        _listening: listening,
        _auditing: auditing,
        _fast_path: fast_path,
        written: None,
        conflist_problem: None,
        conflist_problems: Problems::default(),
        metrics,
        events,
        health_checks,
        conntrack: conntrack_watch::Warning::default(),
        conntrack_problem: None,
        losses: LossReader::default(),
    };
    core.run(&mut news, stop).await;
    Ok(())
}

/// Listens for what the agent says about itself. An address that is taken, most
/// likely by kube-proxy, is no reason to leave the node without network.
async fn listen(address: SocketAddr, what: &str, option: &str) -> Option<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(
                "cannot serve {what} at {address}: {error}; choose another address with {option}"
            );
            None
        }
    }
}

fn thread(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|source| Error::Setup {
            what: "a thread",
            source,
        })
}

struct Core {
    options: Options,
    nodes: Nodes,
    routes: Sender<routes::Message>,
    proxy: Sender<proxy::Message>,
    /// This node as the threads know it.
    sent: Option<Arc<Member>>,
    own_state: Option<OwnState>,
    publisher: Publisher,
    dns: Option<Arc<Dns>>,
    pods: Pods,
    /// What it takes to watch pods, until that is needed.
    pods_unwatched: Option<(Client, UnboundedSender<News>)>,
    routes_report: Option<routes::Report>,
    services_report: Option<proxy::Report>,
    status: health::Shared,
    /// Closed with the loop, which ends the thread that listens to the kernel.
    _listening: UnixStream,
    /// Closed with the loop, which ends the thread that audits addresses.
    _auditing: Sender<()>,
    /// Gone with the loop, so that the thread of the fast path does not keep that of
    /// routes, nor the other way round.
    _fast_path: Arc<Sender<routes::Message>>,
    /// The CNI configuration in force.
    written: Option<ConfigList>,
    conflist_problem: Option<String>,
    conflist_problems: Problems,
    metrics: Arc<Metrics>,
    events: Recorder,
    /// Told which health checks are to be answered.
    health_checks: watch::Sender<Wanted>,
    conntrack: conntrack_watch::Warning,
    conntrack_problem: Option<String>,
    losses: LossReader,
}

impl Core {
    async fn run(&mut self, news: &mut UnboundedReceiver<News>, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut audit = tokio::time::interval(self.options.audit_period.0);
        audit.reset();
        let mut look = tokio::time::interval(CONNTRACK);
        loop {
            let rewrite = self.conflist_problem.is_some();
            tokio::select! {
                () = &mut stop => return,
                first = news.recv() => {
                    // The loop itself holds no sender, but the watches do.
                    let Some(first) = first else { return };
                    let mut changed = self.take(first);
                    while let Ok(more) = news.try_recv() {
                        changed |= self.take(more);
                    }
                    if changed {
                        self.tell_threads();
                    }
                    if let Some(pods) = self.pods.news() {
                        let _ = self.routes.send(routes::Message::Pods(pods));
                    }
                }
                _ = audit.tick() => {
                    let _ = self.proxy.send(proxy::Message::Audit);
                    let _ = self.routes.send(routes::Message::Audit);
                }
                _ = look.tick() => self.look_at_connections(),
                () = tokio::time::sleep(REWRITE), if rewrite => {}
            }
            self.settle();
        }
    }

    /// Takes up news. Returns whether the nodes changed.
    fn take(&mut self, news: News) -> bool {
        match news {
            News::Node(event) => self.nodes.take(event),
            News::Pod(event) => {
                self.pods.take(event);
                false
            }
            News::Routes(report) => {
                self.metrics.applications.inc();
                if report.needs_pods
                    && let Some((client, core)) = self.pods_unwatched.take()
                {
                    feed::start_pods(&client, core);
                }
                if let Some(data) = &report.data {
                    self.publisher.want(data.clone());
                }
                self.routes_report = Some(report);
                false
            }
            News::Services(report) => {
                self.metrics.applications.inc();
                if report.in_force {
                    let wanted = report.health_checks.clone();
                    self.health_checks.send_if_modified(|known| {
                        std::mem::replace(known, wanted.clone()) != wanted
                    });
                }
                self.services_report = Some(report);
                false
            }
            News::Published(outcome) => {
                self.publisher.done(outcome);
                false
            }
            News::Dns => false,
            News::PublishAgain => {
                self.publisher.again();
                false
            }
        }
    }

    /// Tells the threads about the cluster if it is another than they know.
    fn tell_threads(&mut self) {
        let state = self.nodes.own_state();
        if state != self.own_state {
            self.own_state = state;
            let node = &self.options.node;
            match state {
                None => {}
                Some(OwnState::Absent) if self.sent.is_some() => tracing::warn!(
                    "the Node object {node} is gone; keeping everything as it is until it is back"
                ),
                Some(OwnState::Absent) => tracing::info!(
                    "waiting for the Node object {node} (made by the kubelet, or by you: is \
                     --node right?)"
                ),
                Some(OwnState::WithoutRanges) => tracing::info!(
                    "waiting for the pod ranges of node {node} (spec.podCIDRs, given by the \
                     controller manager with --allocate-node-cidrs)"
                ),
                Some(OwnState::Complete) => {}
            }
        }
        let Some(change) = self.nodes.news() else {
            return;
        };
        let Some(own) = self.nodes.own().cloned() else {
            return;
        };
        let facts = translate::facts(&self.options, &own, self.nodes.peers());
        // A thread that is gone is reported where it is joined.
        let _ = self.routes.send(routes::Message::Nodes(change));
        let _ = self.proxy.send(proxy::Message::Facts(Box::new(facts)));
        if let Some(before) = &self.sent
            && before.ranges != own.ranges
        {
            tracing::warn!(
                "the pod ranges of this node changed; pods that have addresses of the old ones \
                 lose their network until they are made anew"
            );
        }
        self.sent = Some(own);
    }

    /// Writes the CNI configuration when its time has come, what peers have to
    /// know, and the status.
    fn settle(&mut self) {
        if let Some(present) = self.nodes.present() {
            self.publisher.settle(present);
        }
        let routes = self.routes_report.clone();
        let services = self.services_report.clone();
        let in_force = routes.as_ref().is_some_and(|r| r.in_force && r.complete)
            && services.as_ref().is_some_and(|s| s.in_force)
            && self.dns.as_ref().is_none_or(|dns| dns.shared.is_ready());
        if let Some(routes) = &routes
            && in_force
        {
            let (list, problem) = match routes.mtu {
                None => (None, Some("no interface of this node is up".to_owned())),
                Some(_) if routes.ranges.is_empty() => (
                    None,
                    Some("no pod range of this node can be used".to_owned()),
                ),
                Some(mtu) => (
                    Some(ConfigList {
                        attach: Some(self.options.attach.mode()),
                        proxy_arp: self.options.proxy_arp,
                        mtu: Some(mtu),
                        ranges: routes.ranges.clone(),
                    }),
                    None,
                ),
            };
            self.conflist_problem = problem;
            if let Some(list) = list.filter(|list| self.written.as_ref() != Some(list)) {
                self.write(list);
            }
        }
        let mut problems = self
            .conflist_problems
            .set(Vec::from_iter(self.conflist_problem.clone()))
            .to_vec();
        problems.extend(self.publisher.problem().cloned());
        problems.extend(
            routes
                .iter()
                .flat_map(|report| report.problems.iter().cloned()),
        );
        problems.extend(
            services
                .iter()
                .flat_map(|report| report.problems.iter().cloned()),
        );
        problems.extend(self.conntrack_problem.clone());
        problems.extend(self.dns.iter().flat_map(|dns| dns.problems()));
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = &self.metrics;
        metrics.ready.set(i64::from(self.written.is_some()));
        metrics.problems.set(number(problems.len()));
        let peers = self.sent.as_ref().map_or(0, |_| self.nodes.peers().len());
        metrics.peers.set(number(peers));
        metrics
            .routes
            .set(number(routes.as_ref().map_or(0, |r| r.routes)));
        let mut status = self.status.lock();
        status.ready = self.written.is_some();
        status.behind_since = match (self.sent.is_some() && !in_force, status.behind_since) {
            (false, _) => None,
            (true, since) => Some(since.unwrap_or_else(Instant::now)),
        };
        status.leaving = self.nodes.leaving();
        status.problems = problems;
    }

    /// Warns in time of a connection table that fills up, and counts what was lost.
    fn look_at_connections(&mut self) {
        let fill = match Fill::read() {
            Ok(Some(fill)) => fill,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!("the connection table cannot be looked at: {error}");
                return;
            }
        };
        self.metrics.connections.0.set(fill.count);
        self.metrics.connections.1.set(fill.limit);
        match self.losses.read() {
            Ok(losses) => self.metrics.lost(losses),
            Err(error) => tracing::debug!("what conntrack lost is not known: {error}"),
        }
        if let Some(message) = self.conntrack.take(fill) {
            self.conntrack_problem = Some(message.clone());
            self.events.warn(event_writer::Warning {
                about: About::Node,
                reason: "ConntrackTableFilling",
                message,
            });
        }
        if !self.conntrack.is_active() && self.conntrack_problem.take().is_some() {
            tracing::info!("the connection table has room again");
        }
    }

    fn write(&mut self, list: ConfigList) {
        // For networks whose configuration leaves the ranges to the node.
        let note = NodeRanges {
            ranges: list.ranges.clone(),
            mtu: list.mtu,
        };
        let written = note
            .write(&self.options.ipam_dir)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                self.install(&list.text())
                    .map_err(|error| error.to_string())
            });
        match written {
            Ok(()) => self.written = Some(list),
            Err(problem) => self.conflist_problem = Some(problem),
        }
    }

    /// The plugin first, the configuration that makes runtimes use it last.
    fn install(&self, text: &str) -> Result<(), install::Error> {
        if let Some(binaries) = &self.options.cni_bin_dir {
            let source = install::plugin_beside_this()?;
            if let Some(path) = install::plugin(&source, binaries)? {
                tracing::info!("installed {}", path.display());
            }
        }
        if self.options.no_cni_conf {
            if self.written.is_none() {
                tracing::info!("ready (no CNI configuration is written: --no-cni-conf)");
            }
            return Ok(());
        }
        let directory = &self.options.cni_conf_dir;
        match install::config_list(directory, text)? {
            Some(path) => tracing::info!("ready for pods: wrote {}", path.display()),
            None => tracing::info!("ready for pods"),
        }
        for other in install::preferred_by_runtimes(directory) {
            tracing::warn!(
                "{} comes before podwire's CNI configuration: container runtimes will use it \
                 instead; remove it",
                other.display()
            );
        }
        Ok(())
    }
}
