//! Programs in pods and on nodes.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use kube::api::{Api, DynamicObject};
use linux::process::{Launch, Namespace};
use serde_json::Value;

use crate::cluster::{self, api_resource, elements, message, text};
use crate::paths::Paths;
use crate::protocol::{self, Answer, Request};

/// Where the kubelet's OCI runtime keeps its containers, on a node.
const CRUN_ROOT: &str = "/run/crun";

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the lab does not run; podwire lab list shows those that do ({path}: {source})", path = path.display())]
    NotRunning { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Api(#[from] cluster::Error),
    #[error("{0}")]
    Pod(String),
    #[error(transparent)]
    Process(#[from] linux::process::Error),
}

/// Asks a lab's supervisor.
pub(crate) fn ask(
    paths: &Paths,
    request: &Request,
) -> Result<(Answer, Option<std::os::fd::OwnedFd>), Error> {
    let (answer, file) =
        protocol::ask(&paths.control(), request).map_err(|source| Error::NotRunning {
            path: paths.control(),
            source,
        })?;
    match answer {
        Answer::Refused(why) => Err(Error::Refused(why)),
        answer => Ok((answer, file)),
    }
}

/// A program to be started on a node, or in another of the lab's namespaces.
fn on_node(paths: &Paths, node: &str, program: &Path) -> Result<Launch, Error> {
    let request = Request::Enter {
        name: node.to_owned(),
    };
    match ask(paths, &request)? {
        (Answer::Process, Some(pidfd)) => Ok(Launch::new(program).join_process(
            pidfd,
            [
                Namespace::Network,
                Namespace::Mount,
                Namespace::Uts,
                Namespace::Ipc,
                Namespace::Pid,
                Namespace::Cgroup,
            ],
        )),
        (Answer::Network, Some(namespace)) => {
            Ok(Launch::new(program).join(Namespace::Network, namespace))
        }
        _ => Err(Error::Refused(format!(
            "the lab's supervisor gave no way into {node}"
        ))),
    }
}

/// Runs it and returns the exit code as a shell would: 128 and the signal's
/// number for a program that was killed.
fn run(launch: Launch) -> Result<u8, Error> {
    let status = launch.spawn()?.wait()?;
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    Ok(u8::try_from(code).unwrap_or(1))
}

/// Runs a program on a node with this process's input and output.
pub(crate) fn node(paths: &Paths, node: &str, command: &[OsString]) -> Result<u8, Error> {
    let Some((program, arguments)) = command.split_first() else {
        return Err(Error::Refused("no program was given".into()));
    };
    let launch = on_node(paths, node, Path::new(program))?.args(arguments);
    run(launch)
}

/// Runs a program in a container of a pod with this process's input and output.
pub(crate) async fn pod(
    paths: &Paths,
    namespace: &str,
    name: &str,
    container: Option<&str>,
    command: &[OsString],
) -> Result<u8, Error> {
    let client = cluster::connect(&paths.kubeconfig()).await?;
    let api: Api<DynamicObject> =
        Api::namespaced_with(client, namespace, &api_resource("", "v1", "Pod", "pods"));
    let found = api
        .get(name)
        .await
        .map_err(|error| Error::Pod(message(&error)))?;
    let found = serde_json::to_value(found).unwrap_or_default();
    let target = target(&found, container).map_err(Error::Pod)?;

    let mut launch = on_node(paths, &target.node, Path::new("crun"))?
        .arg("--root")
        .arg(CRUN_ROOT)
        .arg("exec");
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    if terminal {
        launch = launch.arg("--tty");
        if let Some(kind) = std::env::var_os("TERM") {
            let mut assignment = OsString::from("TERM=");
            assignment.push(kind);
            launch = launch.arg("--env").arg(assignment);
        }
    }
    run(launch.arg(target.container).args(command))
}

#[derive(Debug, PartialEq, Eq)]
struct Target {
    node: String,
    /// The runtime's name of the container.
    container: String,
}

/// The running container that is meant.
fn target(pod: &Value, container: Option<&str>) -> Result<Target, String> {
    let name = text(pod, "/metadata/name");
    let names: Vec<&str> = elements(pod, "/spec/containers")
        .map(|container| text(container, "/name"))
        .collect();
    let wanted = container
        .or(names.first().copied())
        .ok_or_else(|| format!("pod {name} has no containers"))?;
    if !names.contains(&wanted) {
        return Err(format!(
            "pod {name} has no container {wanted}; it has {}",
            names.join(", ")
        ));
    }
    let status = elements(pod, "/status/containerStatuses")
        .find(|status| text(status, "/name") == wanted)
        .filter(|status| status.pointer("/state/running").is_some());
    let id = status
        .map(|status| text(status, "/containerID"))
        .and_then(|id| id.split_once("://"))
        .map(|(_, id)| id)
        .filter(|id| !id.is_empty())
        .ok_or_else(|| {
            format!("container {wanted} of pod {name} does not run; kubectl describe pod {name} says why")
        })?;
    Ok(Target {
        node: text(pod, "/spec/nodeName").to_owned(),
        container: id.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_container_is_meant_when_none_is_named() {
        let pod = json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "node-1", "containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"containerStatuses": [
                {"name": "b", "state": {"waiting": {}}},
                {"name": "a", "containerID": "podwire://abc", "state": {"running": {}}}]}});
        assert_eq!(
            target(&pod, None),
            Ok(Target {
                node: "node-1".into(),
                container: "abc".into()
            })
        );
        assert_eq!(target(&pod, Some("a")), target(&pod, None));
        let text = |container| target(&pod, Some(container)).unwrap_err();
        assert!(text("b").contains("container b of pod p does not run"));
        assert_eq!(text("c"), "pod p has no container c; it has a, b");
    }
}
