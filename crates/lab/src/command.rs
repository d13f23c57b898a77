//! The commands of `podwire lab`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use kube::api::{Api, DeleteParams, DynamicObject};
use kubelet::images::Store;
use serde::Serialize;
use serde_json::json;

use crate::cluster::{self, Cluster, api_resource, message};
use crate::config::{Backend, Proxy, is_label};
use crate::manifests::{Object, Resource, Source};
use crate::paths::{LABS, Paths};
use crate::progress::Progress;
use crate::protocol::{Answer, Request};
use crate::readiness::problems;
use crate::summary::Summary;
use crate::{down, exec, up};

/// The command line of `podwire lab`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which lab
    #[arg(
        long,
        global = true,
        value_name = "LAB",
        env = "PODWIRE_LAB",
        default_value = "default"
    )]
    name: String,
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Bring a lab up, or bring a running one up to date
    Up(up::Options),
    /// Take a lab down; nothing of it is left
    Down,
    /// Show nodes, pods and Services
    Status,
    /// List the labs of this machine
    List,
    /// Run a program in a pod
    Exec {
        /// The pod
        pod: String,
        /// The pod's namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The container; the pod's first when absent
        #[arg(short, long)]
        container: Option<String>,
        /// The program and its arguments, behind --
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Load the images of a file for the lab's pods
    Load {
        /// An OCI layout (a folder or a tar of it), or an archive of docker save
        #[arg(value_name = "FILE|DIR")]
        path: PathBuf,
        /// The name its only image gets, instead of that in the file
        #[arg(long = "as", value_name = "NAME")]
        image: Option<String>,
    },
    /// Print the path of the kubeconfig file
    Kubeconfig,
    /// Print the logs of the lab's own processes
    Logs {
        /// Which, for instance control-plane or node-1-kubelet; all when absent
        process: Option<String>,
    },
    /// Change how pods' packets get from node to node, of one node or of all
    Backend {
        /// The way
        #[arg(value_enum)]
        backend: Backend,
        /// The node; all, and those added later, when absent
        #[arg(long)]
        node: Option<String>,
    },
    /// Change how Services are brought into the kernel, on all nodes and those added later
    Proxy {
        /// The proxy
        #[arg(value_enum)]
        proxy: Proxy,
    },
    /// Add and remove nodes, and run programs on them
    #[command(subcommand)]
    Node(NodeCommand),
}

#[derive(Debug, clap::Subcommand)]
enum NodeCommand {
    /// Add a node
    Add {
        /// Its name; the next node-N when absent
        node: Option<String>,
        /// Its subnet, from 1; the next in turn when absent
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        subnet: Option<u32>,
        /// How its pods' packets get to other nodes; as the lab's when absent
        #[arg(long, value_enum)]
        backend: Option<Backend>,
    },
    /// Remove a node with all its pods
    Remove {
        /// Its name
        node: String,
    },
    /// Run a program on a node, or beside the router, the switch, or the
    /// outside world
    Exec {
        /// The node's name, or router, switch, outside, control
        node: String,
        /// The program and its arguments, behind --
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Why a command failed, with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    message: String,
    code: u8,
}

impl Error {
    /// The exit code: 2 for wrong options, else 1.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    fn new(error: impl std::fmt::Display) -> Self {
        Self {
            message: error.to_string(),
            code: 1,
        }
    }
}

impl From<up::Error> for Error {
    fn from(error: up::Error) -> Self {
        let code = match error {
            up::Error::Invalid(_) | up::Error::Manifests(_) => 2,
            up::Error::Interrupted => 130,
            _ => 1,
        };
        Self {
            message: error.to_string(),
            code,
        }
    }
}

impl From<exec::Error> for Error {
    fn from(error: exec::Error) -> Self {
        Self::new(error)
    }
}

impl From<cluster::Error> for Error {
    fn from(error: cluster::Error) -> Self {
        Self::new(error)
    }
}

/// Runs a command and returns the exit code.
///
/// # Errors
/// What went wrong, with what to do.
pub fn run(options: &Options) -> Result<u8, Error> {
    if !is_label(&options.name) {
        return Err(Error {
            message: format!(
                "--name {:?}: a lab's name has lower-case letters, digits and dashes",
                options.name
            ),
            code: 2,
        });
    }
    let paths = Paths::of(&options.name);
    let output = options.output;
    let need = |what: &str| need_running(&options.name, &paths, what);
    match &options.command {
        Command::Status => need("looking into a lab")?,
        Command::Exec { .. } => need("running a program in a pod")?,
        Command::Load { .. } => need("loading images")?,
        Command::Backend { .. } => need("changing the back end")?,
        Command::Proxy { .. } => need("changing the proxy")?,
        Command::Node(NodeCommand::Add { .. }) => need("adding a node")?,
        Command::Node(NodeCommand::Remove { .. }) => need("removing a node")?,
        Command::Node(NodeCommand::Exec { .. }) => need("running a program on a node")?,
        Command::Up(_)
        | Command::Down
        | Command::List
        | Command::Kubeconfig
        | Command::Logs { .. } => {}
    }
    match &options.command {
        Command::Up(up) => block_on(bring_up(&options.name, up, output)),
        Command::Down => take_down(&options.name, output),
        Command::Status => block_on(status(&options.name, &paths, output)),
        Command::List => list(output),
        Command::Exec {
            pod,
            namespace,
            container,
            command,
        } => block_on(async {
            exec::pod(&paths, namespace, pod, container.as_deref(), command)
                .await
                .map_err(Error::from)
        }),
        Command::Load { path, image } => {
            load(&options.name, &paths, path, image.as_deref(), output)
        }
        Command::Kubeconfig => kubeconfig(&options.name, &paths, output),
        Command::Logs { process } => logs(&options.name, &paths, process.as_deref()),
        Command::Backend { backend, node } => {
            let node = node.clone();
            let backend = *backend;
            change(
                &paths,
                &Request::Backend { backend, node },
                "backend",
                &backend,
                output,
            )
        }
        Command::Proxy { proxy } => {
            let request = Request::Proxy { proxy: *proxy };
            change(&paths, &request, "proxy", proxy, output)
        }
        Command::Node(NodeCommand::Add {
            node,
            subnet,
            backend,
        }) => {
            let request = Request::AddNode {
                name: node.clone(),
                subnet: subnet.map(|number| number - 1),
                backend: *backend,
            };
            add_node(&paths, &request, output)
        }
        Command::Node(NodeCommand::Remove { node }) => block_on(remove_node(&paths, node, output)),
        Command::Node(NodeCommand::Exec { node, command }) => {
            exec::node(&paths, node, command).map_err(Error::from)
        }
    }
}

/// Runs podwire with these arguments on a node of a lab, with this process's
/// input and output, and returns the exit code.
///
/// # Errors
/// What went wrong, with what to do.
pub fn run_on_node(lab: &str, node: &str, arguments: &[OsString]) -> Result<u8, Error> {
    if !is_label(lab) {
        return Err(Error {
            message: format!(
                "--lab {lab:?}: a lab's name has lower-case letters, digits and dashes"
            ),
            code: 2,
        });
    }
    let paths = Paths::of(lab);
    need_running(lab, &paths, "looking into a lab's node")?;
    let mut command = vec![OsString::from(crate::node::EXECUTABLE)];
    command.extend_from_slice(arguments);
    exec::node(&paths, node, &command).map_err(Error::from)
}

/// On the calling thread: children die with the thread that started them, and
/// namespaces are entered by threads.
fn block_on<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(format!("cannot start the runtime: {error}")))?
        .block_on(work)
}

/// Prints; a reader that went away is no failure.
fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::new(format!(
            "cannot write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_string_pretty(value).map_err(Error::new)?;
    text.push('\n');
    print(&text)
}

async fn bring_up(name: &str, options: &up::Options, output: Output) -> Result<u8, Error> {
    let mut progress = Progress::new();
    let outcome = up::up(name, options, &mut progress).await?;
    let ready = outcome.problems.is_empty();
    progress.finish(match (ready, outcome.waited) {
        (true, true) => "everything is ready",
        (true, false) => "applied; not waited for",
        (false, _) => "",
    });
    match output {
        Output::Json => print_json(&outcome.summary)?,
        Output::Text => {
            print(&outcome.summary.tables())?;
            if ready {
                let path = Paths::of(name).kubeconfig();
                print(&format!(
                    "\nFor kubectl\n export KUBECONFIG={}\n",
                    path.display()
                ))?;
            }
        }
    }
    if ready {
        return Ok(0);
    }
    let list: Vec<String> = outcome
        .problems
        .iter()
        .map(|problem| {
            format!(
                "  {}: {}",
                problem.what,
                problem.why.replace('\n', "\n    ")
            )
        })
        .collect();
    Err(Error::new(format!(
        "not ready in time:\n{}\nThe lab is up: look with podwire lab status --name {name}, wait \
         longer with --wait-timeout, or take it down with podwire lab down --name {name}",
        list.join("\n")
    )))
}

fn take_down(name: &str, output: Output) -> Result<u8, Error> {
    need_root("taking a lab down")?;
    let was_there = down::down(name).map_err(Error::new)?;
    match output {
        Output::Json => print_json(&json!({"name": name, "wasThere": was_there}))?,
        Output::Text if was_there => print(&format!("lab {name} is down\n"))?,
        Output::Text => print(&format!("there is no lab {name}\n"))?,
    }
    Ok(0)
}

fn need_root(what: &str) -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(format!(
        "{what} needs root; try again with sudo"
    )))
}

/// What commands that look or reach into a lab need.
fn need_running(name: &str, paths: &Paths, what: &str) -> Result<(), Error> {
    need_root(what)?;
    if is_running(paths)? {
        return Ok(());
    }
    Err(Error::new(format!(
        "the lab {name} does not run; podwire lab list shows those that do, podwire lab up --name \
         {name} brings it up"
    )))
}

async fn status(name: &str, paths: &Paths, output: Output) -> Result<u8, Error> {
    let nodes = up::node_names(paths)?;
    let client = cluster::connect(&paths.kubeconfig()).await?;
    let cluster = Cluster::list(&client).await?;
    let mut problems = problems(&nodes, &everything(&cluster), &cluster);
    up::explain(&client, &mut problems).await;
    let list: String = problems
        .iter()
        .map(|problem| {
            format!(
                " {}: {}\n",
                problem.what,
                problem.why.replace('\n', "\n   ")
            )
        })
        .collect();
    let summary = Summary::new(name, paths.kubeconfig(), &cluster, problems);
    match output {
        Output::Json => print_json(&summary)?,
        Output::Text => {
            print(&summary.tables())?;
            if !list.is_empty() {
                print(&format!("\nNot ready\n{list}"))?;
            }
        }
    }
    Ok(0)
}

/// The workloads that are there, as if they stood in manifests.
fn everything(cluster: &Cluster) -> Vec<Object> {
    let owned = |value: &&serde_json::Value| value.pointer("/metadata/ownerReferences").is_none();
    [
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "Pod",
    ]
    .into_iter()
    .flat_map(|kind| {
        cluster.all(kind).filter(owned).map(move |value| Object {
            source: Source {
                file: "API".into(),
                line: 0,
            },
            kind: apiserver::resource::GroupVersionKind::new("", "", kind),
            resource: Resource {
                plural: String::new(),
                namespaced: true,
            },
            value: value.clone(),
        })
    })
    .collect()
}

fn list(output: Output) -> Result<u8, Error> {
    let mut labs = Vec::new();
    let entries = match std::fs::read_dir(LABS) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let entries = entries.map_err(|error| Error::new(format!("cannot read {LABS}: {error}")))?;
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_label(&name) {
            let running = is_running(&Paths::of(&name))?;
            labs.push((name, running));
        }
    }
    labs.sort();
    match output {
        Output::Json => {
            let labs: Vec<_> = labs
                .iter()
                .map(|(name, running)| {
                    json!({"name": name, "running": running,
                        "kubeconfig": Paths::of(name).kubeconfig()})
                })
                .collect();
            print_json(&labs)?;
        }
        Output::Text => {
            let lines: String = labs
                .iter()
                .map(|(name, running)| match running {
                    true => format!("{name}\n"),
                    false => format!("{name} (dead; podwire lab down --name {name} cleans up)\n"),
                })
                .collect();
            print(&lines)?;
        }
    }
    Ok(0)
}

/// Whether somebody holds the lab's lock.
fn is_running(paths: &Paths) -> Result<bool, Error> {
    if !paths.lock().exists() {
        return Ok(false);
    }
    match std::fs::File::open(paths.lock()).map(|file| file.try_lock_shared()) {
        Ok(Ok(())) => Ok(false),
        Ok(Err(std::fs::TryLockError::WouldBlock)) => Ok(true),
        Ok(Err(std::fs::TryLockError::Error(error))) | Err(error) => Err(Error::new(format!(
            "cannot read {}: {error}",
            paths.lock().display()
        ))),
    }
}

fn load(
    name: &str,
    paths: &Paths,
    file: &Path,
    image: Option<&str>,
    output: Output,
) -> Result<u8, Error> {
    if let Err(error) = std::fs::metadata(file) {
        return Err(Error {
            message: format!("cannot read {}: {error}", file.display()),
            code: 2,
        });
    }
    let loaded = Store::open(paths.images()).and_then(|store| store.load(file, image));
    let loaded = loaded.map_err(|error| {
        use kubelet::images::Error as Images;
        let code = match error {
            Images::Name { .. } | Images::Content { .. } | Images::Platform { .. } => 2,
            _ => 1,
        };
        Error {
            message: format!("cannot load images: {error}"),
            code,
        }
    })?;
    match output {
        Output::Json => {
            let images: Vec<_> = loaded
                .iter()
                .map(|image| json!({"name": image.name, "id": image.id}))
                .collect();
            print_json(&json!({"name": name, "images": images}))?;
        }
        Output::Text => {
            let lines: String = loaded
                .iter()
                .map(|image| format!("{}\n", image.name))
                .collect();
            print(&lines)?;
        }
    }
    Ok(0)
}

fn no_lab(name: &str) -> Error {
    Error::new(format!(
        "there is no lab {name}; bring it up with podwire lab up --name {name}"
    ))
}

fn kubeconfig(name: &str, paths: &Paths, output: Output) -> Result<u8, Error> {
    let path = paths.kubeconfig();
    if !path.exists() {
        return Err(no_lab(name));
    }
    match output {
        Output::Json => print_json(&json!({"name": name, "kubeconfig": path}))?,
        Output::Text => print(&format!("{}\n", path.display()))?,
    }
    Ok(0)
}

fn logs(name: &str, paths: &Paths, process: Option<&str>) -> Result<u8, Error> {
    if !paths.logs().exists() {
        return Err(no_lab(name));
    }
    let read = |path: &Path| {
        std::fs::read_to_string(path)
            .map_err(|error| Error::new(format!("cannot read {}: {error}", path.display())))
    };
    if let Some(process) = process {
        if !is_label(process) {
            return Err(Error::new(format!("{process:?} is no process of a lab")));
        }
        print(&read(&paths.log(process))?)?;
        return Ok(0);
    }
    let directory = paths.logs();
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
        .map_err(|error| Error::new(format!("cannot read {}: {error}", directory.display())))?;
    files.sort();
    for file in files {
        let text = read(&file)?;
        if !text.is_empty() {
            let name = file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let lines: String = text
                .lines()
                .map(|line| format!("{name}: {line}\n"))
                .collect();
            print(&lines)?;
        }
    }
    Ok(0)
}

/// Tells the nodes that `what` is another one now.
fn change(
    paths: &Paths,
    request: &Request,
    what: &str,
    now: &(impl serde::Serialize + std::fmt::Display),
    output: Output,
) -> Result<u8, Error> {
    let (answer, _) = exec::ask(paths, request)?;
    let Answer::Told(nodes) = answer else {
        return Err(Error::new(
            "the supervisor gave an answer to another question",
        ));
    };
    match output {
        Output::Json => print_json(&json!({what: now, "nodes": nodes}))?,
        Output::Text => {
            let lines: String = nodes
                .iter()
                .map(|node| format!("{node} goes on with {now}\n"))
                .collect();
            print(&lines)?;
        }
    }
    Ok(0)
}

fn add_node(paths: &Paths, request: &Request, output: Output) -> Result<u8, Error> {
    let (answer, _) = exec::ask(paths, request)?;
    let Answer::Added(node) = answer else {
        return Err(Error::new(
            "the supervisor gave an answer to another question",
        ));
    };
    match output {
        Output::Json => print_json(&node)?,
        Output::Text => {
            let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
            print(&format!("{} {}\n", node.name, addresses.join(" ")))?;
        }
    }
    Ok(0)
}

async fn remove_node(paths: &Paths, name: &str, output: Output) -> Result<u8, Error> {
    // First the machine, so that nobody registers it again, then its object.
    let gone = exec::ask(
        paths,
        &Request::RemoveNode {
            name: name.to_owned(),
        },
    );
    let client = cluster::connect(&paths.kubeconfig()).await?;
    let nodes: Api<DynamicObject> = Api::all_with(client, &api_resource("", "v1", "Node", "nodes"));
    let deleted = nodes.delete(name, &DeleteParams::default()).await;
    let had_object = match deleted {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.code == 404 => false,
        Err(error) => {
            return Err(Error::new(format!(
                "cannot delete the Node object {name}: {}",
                message(&error)
            )));
        }
    };
    // An object without a machine is what an interrupted removal leaves.
    if !had_object {
        gone?;
    }
    match output {
        Output::Json => print_json(&json!({"name": name, "removed": true}))?,
        Output::Text => print(&format!("{name} is removed\n"))?,
    }
    Ok(0)
}
