use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use linux::process::{Launch, Namespace};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;

use super::ended;
use crate::record::{ProcessId, Sandbox};
use crate::{disk, paths, pause};

/// How a pod's namespaces are to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shape {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    pub(crate) sysctls: BTreeMap<String, String>,
}

/// Starts the pause process of a pod and gives its network namespace a name.
///
/// # Errors
/// In words for an event; nothing is left then.
pub(crate) async fn start(shape: &Shape) -> Result<Sandbox, String> {
    let mut namespaces = Vec::new();
    let mut launch = Launch::this_executable()
        .arg("pause")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .session();
    if !shape.host_network {
        namespaces.extend([Namespace::Network, Namespace::Uts]);
        launch = launch
            .env(pause::HOSTNAME, &shape.hostname)
            .env(pause::OWN_NETWORK, "1");
    }
    if !shape.host_ipc {
        namespaces.push(Namespace::Ipc);
    }
    if !shape.sysctls.is_empty() {
        let sysctls = serde_json::to_string(&shape.sysctls).map_err(|error| error.to_string())?;
        launch = launch.env(pause::SYSCTLS, sysctls);
    }
    let mut child = launch
        .unshare(namespaces)
        .spawn()
        .map_err(|error| error.to_string())?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let process = child.process;
    let prepare = async {
        let mut said = String::new();
        if let Some(stdout) = stdout {
            let mut stdout = tokio::process::ChildStdout::from_std(stdout)
                .map_err(|error| format!("listening to the pause process: {error}"))?;
            let _ = stdout.read_to_string(&mut said).await;
        }
        if said != "ready\n" {
            let mut reason = String::new();
            if let Some(stderr) = stderr
                && let Ok(mut stderr) = tokio::process::ChildStderr::from_std(stderr)
            {
                let _ = stderr.read_to_string(&mut reason).await;
            }
            return Err(format!("the pause process ended: {}", reason.trim()));
        }
        let pause = ProcessId::of(process.pid()).map_err(|error| error.to_string())?;
        let netns = if shape.host_network {
            None
        } else {
            Some(name_network(pause.pid, &shape.id)?)
        };
        Ok(Sandbox {
            id: shape.id.clone(),
            pause,
            netns,
            ips: Vec::new(),
            ready: false,
        })
    };
    let prepared = prepare.await;
    if prepared.is_err() {
        let _ = process.signal(Signal::KILL);
        ended(&process).await;
    }
    prepared
}

/// Mounts the network namespace of a process under a name of its own.
fn name_network(pid: i32, id: &str) -> Result<PathBuf, String> {
    let path = Path::new(paths::NETNS).join(id);
    std::fs::create_dir_all(paths::NETNS)
        .and_then(|()| std::fs::File::create(&path).map(drop))
        .map_err(|error| format!("making {}: {error}", path.display()))?;
    let source = PathBuf::from(format!("/proc/{pid}/ns/net"));
    if let Err(error) = linux::mount::bind(&source, &path) {
        let _ = std::fs::remove_file(&path);
        return Err(error.to_string());
    }
    Ok(path)
}

/// Ends a pause process and takes the name of its network namespace away.
/// What is gone already is no error.
///
/// # Errors
/// When the name can't be removed.
pub(crate) async fn remove(sandbox: &Sandbox) -> io::Result<()> {
    if let Some(process) = sandbox.pause.open() {
        let _ = process.signal(Signal::KILL);
        ended(&process).await;
    }
    if let Some(path) = &sandbox.netns {
        // Not mounted when the node has been started anew.
        let _ = linux::mount::unmount(path, true);
        disk::remove_file(path)?;
    }
    Ok(())
}

/// Brings up the loopback link of the caller's network namespace.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn loopback_up() -> Result<(), linux::netlink::Error> {
    // `lo` is the first link of every network namespace.
    linux::netlink::Socket::open_route()?.execute(&linux::link::set_up(1))
}
