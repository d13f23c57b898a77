//! A node of a test's own: the test runs again in new network, mount, host
//! name, IPC and process namespaces, over an overlay of the machine's root.
//! With its first process, the test, all of it goes.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect")]

use std::future::Future;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1 as k8s;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use linux::mount;
use linux::process::{Launch, Namespace};
use serde_json::{Value, json};

const INSIDE: &str = "PODWIRE_TEST_NODE";
const NODE_IP: &str = "192.168.64.11";
/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test's body in a node with an API server and a kubelet.
pub(crate) fn test<F: Future<Output = ()>>(name: &str, body: impl FnOnce(Node) -> F) {
    match std::env::var(INSIDE).as_deref() {
        Err(_) => return run_inside(name),
        Ok("init") => be_init(name),
        Ok(_) => {}
    }
    enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let node = Node::start().await;
        body(node).await;
    });
    // What the kubelet started ends with the first process here.
}

fn run_inside(name: &str) {
    let mut child = Launch::this_executable()
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "init")
        .unshare([
            Namespace::Network,
            Namespace::Mount,
            Namespace::Uts,
            Namespace::Ipc,
            Namespace::Pid,
        ])
        .spawn()
        .unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{name} failed in its node: {status}");
}

/// The first process of the node: reaps orphans, as a node's init does, and
/// ends with the test.
fn be_init(name: &str) -> ! {
    let child = Launch::this_executable()
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "test")
        .spawn()
        .unwrap();
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child.pid() => {
                std::process::exit(status.exit_status().unwrap_or(1))
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => panic!("waiting for orphans: {errno}"),
        }
    }
}

fn enter() {
    mount::make_private(Path::new("/")).unwrap();
    let base = Path::new("/mnt");
    mount::tmpfs(base, "").unwrap();
    let dirs = ["upper", "work", "root"].map(|part| base.join(part));
    for dir in &dirs {
        std::fs::create_dir(dir).unwrap();
    }
    let [upper, work, root] = &dirs;
    let layers = mount::Upper { upper, work };
    mount::overlay(&[Path::new("/")], Some(layers), root).unwrap();
    let make = |path: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    mount::tmpfs(&make("run"), "").unwrap();
    mount::bind(Path::new("/"), &make("run/podwire/host-root")).unwrap();
    mount::tmpfs(&make("var/lib/podwire"), "").unwrap();
    mount::bind_recursive(Path::new("/dev"), &make("dev")).unwrap();
    mount::proc(&make("proc")).unwrap();
    mount::sysfs(&make("sys")).unwrap();
    mount::tmpfs(&make("sys/fs/cgroup"), "").unwrap();
    mount::pivot_root(root).unwrap();
    let _ = std::fs::remove_dir_all("/etc/cni/net.d");
    let mut socket = linux::netlink::Socket::open_route().unwrap();
    socket.execute(&linux::link::set_up(1)).unwrap();
    // The node's own address; nothing else is reachable from here.
    let done = Command::new("ip")
        .args(["address", "add", &format!("{NODE_IP}/32"), "dev", "lo"])
        .status()
        .unwrap();
    assert!(done.success());
}

pub(crate) struct Node {
    pub(crate) client: kube::Client,
    kubelet: Option<Child>,
    server: Arc<apiserver::Server>,
    dir: tempfile::TempDir,
}

impl Node {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = apiserver::Config {
            store: dir.path().join("store.redb"),
            pki: dir.path().join("pki"),
            service_ranges: vec!["10.96.0.0/12".parse().unwrap()],
            advertise: vec![NODE_IP.parse().unwrap()],
            advertise_port: 6443,
            logs: Arc::new(apiserver::log_source::FileLogs::new(|_| {
                "/var/log/pods".into()
            })),
        };
        let server = Arc::new(apiserver::Server::open(config).await.unwrap());
        let kubeconfig = dir.path().join("kubeconfig");
        server
            .write_kubeconfig(&kubeconfig, "https://127.0.0.1:6443")
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:6443").unwrap();
        let serving = Arc::clone(&server);
        tokio::spawn(async move { serving.serve(vec![listener]).await });
        let file = kube::config::Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default())
            .await
            .unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let mut node = Self {
            client,
            kubelet: None,
            server,
            dir,
        };
        node.write_network();
        node.start_kubelet();
        node
    }

    /// Debian's bridge plugin with addresses from a range of each family.
    pub(crate) fn write_network(&self) {
        std::fs::create_dir_all("/etc/cni/net.d").unwrap();
        let list = json!({
            "cniVersion": "1.0.0", "name": "test",
            "plugins": [
                {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                 "ipam": {"type": "host-local", "dataDir": "/run/ipam",
                          "ranges": [[{"subnet": "10.200.1.0/24"}], [{"subnet": "fd00:200:0:1::/64"}]],
                          "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
            ]
        });
        std::fs::write("/etc/cni/net.d/10-test.conflist.tmp", list.to_string()).unwrap();
        std::fs::rename(
            "/etc/cni/net.d/10-test.conflist.tmp",
            "/etc/cni/net.d/10-test.conflist",
        )
        .unwrap();
    }

    pub(crate) fn start_kubelet(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_podwire-kubelet"))
            .arg("kubelet")
            .arg("--kubeconfig")
            .arg(self.dir.path().join("kubeconfig"))
            .args(["--node", "node-1", "--node-ip", NODE_IP])
            .args(["--cluster-dns", "10.96.0.10"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.kubelet = Some(child);
    }

    /// Ends the kubelet as a crash does.
    pub(crate) fn kill_kubelet(&mut self) {
        let mut kubelet = self.kubelet.take().unwrap();
        kubelet.kill().unwrap();
        kubelet.wait().unwrap();
    }

    pub(crate) fn pods(&self) -> Api<k8s::Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// Creates an object in the default namespace.
    pub(crate) async fn create<K>(&self, value: Value) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + serde::Serialize
            + serde::de::DeserializeOwned
            + Clone
            + std::fmt::Debug,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::default_namespaced(self.client.clone());
        let object: K = serde_json::from_value(value).unwrap();
        api.create(&PostParams::default(), &object).await.unwrap()
    }

    /// Creates a pod bound to this node.
    pub(crate) async fn run_pod(&self, name: &str, spec: Value) -> k8s::Pod {
        let mut spec = spec;
        spec["nodeName"] = json!("node-1");
        self.create(json!({"metadata": {"name": name}, "spec": spec}))
            .await
    }

    /// Waits until a pod is as wanted; panics with what it was last.
    pub(crate) async fn wait(&self, name: &str, wanted: impl Fn(&k8s::Pod) -> bool) -> k8s::Pod {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let stream = watcher::watcher(self.pods(), config);
        let mut last = None;
        let found = tokio::time::timeout(PATIENCE, async {
            let mut stream = std::pin::pin!(stream);
            while let Some(event) = stream.next().await {
                if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
                    if wanted(&pod) {
                        return pod;
                    }
                    last = Some(pod);
                }
            }
            panic!("the watch has ended");
        })
        .await;
        match found {
            Ok(pod) => pod,
            Err(_) => {
                let status = last.map(|pod| serde_json::to_string_pretty(&pod.status).unwrap());
                panic!(
                    "pod {name} is not as wanted: {}\n{:?}",
                    status.unwrap_or_default(),
                    self.events(name).await
                )
            }
        }
    }

    pub(crate) async fn ready(&self, name: &str) -> k8s::Pod {
        self.wait(name, is_ready).await
    }

    /// Deletes a pod and waits until it is gone.
    pub(crate) async fn delete(&self, name: &str, grace: u32) {
        let parameters = DeleteParams::default().grace_period(grace);
        self.pods().delete(name, &parameters).await.unwrap();
        self.gone(name).await;
    }

    pub(crate) async fn gone(&self, name: &str) {
        let wait = async {
            let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
            let stream = watcher::watcher(self.pods(), config);
            let mut stream = std::pin::pin!(stream);
            let mut listed = 0;
            while let Some(event) = stream.try_next().await.unwrap() {
                match event {
                    watcher::Event::Delete(_) => return,
                    watcher::Event::InitApply(_) => listed += 1,
                    watcher::Event::InitDone if listed == 0 => return,
                    _ => {}
                }
            }
        };
        assert!(
            tokio::time::timeout(PATIENCE, wait).await.is_ok(),
            "pod {name} is not gone: {:?}",
            self.pods().get_opt(name).await
        );
    }

    /// `reason: message` of the events about a pod.
    pub(crate) async fn events(&self, name: &str) -> Vec<String> {
        let api: Api<k8s::Event> = Api::default_namespaced(self.client.clone());
        let list = api.list(&ListParams::default()).await.unwrap();
        list.items
            .into_iter()
            .filter(|event| event.involved_object.name.as_deref() == Some(name))
            .map(|event| {
                format!(
                    "{}: {}",
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default()
                )
            })
            .collect()
    }

    /// What a container's run has printed, without the records' heads.
    pub(crate) fn log(&self, pod: &k8s::Pod, container: &str, attempt: u32) -> String {
        let path = self.log_path(pod, container, attempt);
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n")
            .collect()
    }

    pub(crate) fn log_path(&self, pod: &k8s::Pod, container: &str, attempt: u32) -> PathBuf {
        let meta = &pod.metadata;
        PathBuf::from(format!(
            "/var/log/pods/default_{}_{}/{container}/{attempt}.log",
            meta.name.as_deref().unwrap(),
            meta.uid.as_deref().unwrap()
        ))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(kubelet) = &mut self.kubelet {
            let _ = kubelet.kill();
        }
    }
}

/// Writes an executable script.
pub(crate) fn script(path: &str, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

pub(crate) fn condition(pod: &k8s::Pod, kind: &str) -> Option<String> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
        .map(|condition| condition.status.clone())
}

pub(crate) fn is_ready(pod: &k8s::Pod) -> bool {
    condition(pod, "Ready").as_deref() == Some("True")
}

pub(crate) fn phase(pod: &k8s::Pod) -> &str {
    let status = pod.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// The status of a container, also of an init container.
pub(crate) fn container(pod: &k8s::Pod, name: &str) -> Option<k8s::ContainerStatus> {
    let status = pod.status.as_ref()?;
    let main = status.container_statuses.iter().flatten();
    let init = status.init_container_statuses.iter().flatten();
    main.chain(init).find(|status| status.name == name).cloned()
}

/// A container of the machine's own file system that runs a shell script.
pub(crate) fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": "host:", "command": ["/bin/sh", "-c", script]})
}

/// Waits until a condition holds that no event tells of.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until pods have left nothing on the node: no folder, log, namespace,
/// mount, address reservation or process.
pub(crate) async fn nothing_is_left() {
    let empty =
        |dir: &str| std::fs::read_dir(dir).map_or(true, |entries| entries.flatten().count() == 0);
    for dir in [
        "/var/lib/kubelet/pods",
        "/var/lib/podwire/containers",
        "/run/netns",
        "/run/crun",
        "/var/log/pods",
    ] {
        eventually(&format!("{dir} is not empty"), || empty(dir)).await;
    }
    let reserved = || {
        std::fs::read_dir("/run/ipam/test").map_or(0, |entries| {
            entries
                .flatten()
                .filter(|entry| !entry.file_name().to_string_lossy().starts_with('l'))
                .count()
        })
    };
    eventually("addresses are still reserved", || reserved() == 0).await;
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("/var/lib/kubelet"), "{mounts}");
    let helpers = || {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
            .filter(|line| line.contains("container-monitor") || line.contains("\0pause"))
            .count()
    };
    eventually("monitors or pause processes are left", || helpers() == 0).await;
}
