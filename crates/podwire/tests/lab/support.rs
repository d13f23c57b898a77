//! A lab for one test: up when made, down when dropped.

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

/// The program under test.
pub(crate) const PODWIRE: &str = env!("CARGO_BIN_EXE_podwire");

/// A pod on the machine's own file system that waits to be told what to run.
pub(crate) fn client(name: &str, node: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{role: client}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: shell, image: 'host:', command: [sleep, infinity]}}
"
    )
}

/// A pod that serves HTTP on port 8080, ready as soon as it answers.
pub(crate) fn server(name: &str, app: &str, node: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: http
    image: podwire.dev/toolbox
    ports: [{{name: http, containerPort: 8080}}]
    readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}
"
    )
}

/// A dual-stack Service on port 80 for the pods of an app.
pub(crate) fn service(app: &str, cluster_ip: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {app}}}
spec:
  clusterIP: {cluster_ip}
  ipFamilyPolicy: PreferDualStack
  selector: {{app: {app}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
"
    )
}

/// A name no other test of this or any other run uses now.
pub(crate) fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "t{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Runs a program to its end and keeps what it printed.
pub(crate) fn output(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
}

/// What a program printed, both streams, for a failure's text.
pub(crate) fn printed(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The standard output of a program that must succeed.
pub(crate) fn success(what: &str, output: &Output) -> String {
    assert!(output.status.success(), "{what}: {}", printed(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a condition holds, and fails with the last thing seen when it
/// does not within the time.
pub(crate) fn eventually<T>(
    what: &str,
    within: Duration,
    mut check: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match check() {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => {
                panic!("{what}: not within {within:?}: {seen}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A running lab.
pub(crate) struct Lab {
    pub(crate) name: String,
    kubeconfig: PathBuf,
}

impl Lab {
    /// Brings a lab up with further arguments of `podwire lab up`, and waits
    /// until everything in the manifests is ready.
    pub(crate) fn up(arguments: &[&str], manifests: &str) -> Lab {
        let name = unique_name();
        let lab = Lab {
            kubeconfig: format!("/run/podwire/lab/{name}/kubeconfig").into(),
            name,
        };
        let mut all = vec!["lab", "up", "--name", &lab.name];
        all.extend(arguments);
        if !manifests.is_empty() {
            all.extend(["-f", "-"]);
        }
        let mut up = Command::new(PODWIRE)
            .args(&all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("podwire was built by cargo for this test");
        up.stdin
            .take()
            .expect("standard input is piped")
            .write_all(manifests.as_bytes())
            .expect("podwire lab up reads its manifests");
        let output = up.wait_with_output().expect("podwire lab up ends");
        if !output.status.success() {
            // The kubelets' and agents' own words say why.
            let logs = super::support::output(
                "sh",
                &[
                    "-c",
                    &format!("tail -n 15 /run/podwire/lab/{}/logs/*", lab.name),
                ],
            );
            panic!(
                "lab up {arguments:?}: {}\n{}",
                printed(&output),
                printed(&logs)
            );
        }
        lab
    }

    /// `kubectl` on this lab.
    pub(crate) fn kubectl_output(&self, arguments: &[&str]) -> Output {
        self.kubectl_with("kubectl", arguments, "")
    }

    /// A certain `kubectl` on this lab with standard input.
    pub(crate) fn kubectl_with(&self, program: &str, arguments: &[&str], input: &str) -> Output {
        let mut child = self.kubectl_start(program, arguments);
        child
            .stdin
            .take()
            .expect("standard input is piped")
            .write_all(input.as_bytes())
            .ok();
        child.wait_with_output().expect("kubectl ends")
    }

    /// Starts a `kubectl` that goes on, a watch for example.
    pub(crate) fn kubectl_start(&self, program: &str, arguments: &[&str]) -> Child {
        Command::new(program)
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!(
                "--cache-dir=/run/podwire/lab/{}/kubectl-cache",
                self.name
            ))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
    }

    /// `kubectl` that must succeed; its standard output.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        success(
            &format!("kubectl {arguments:?}"),
            &self.kubectl_output(arguments),
        )
    }

    /// `kubectl apply` of a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> String {
        success(
            "kubectl apply",
            &self.kubectl_with("kubectl", &["apply", "-f", "-"], manifest),
        )
    }

    /// An object as JSON.
    pub(crate) fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)).expect("kubectl prints JSON")
    }

    /// A program in a pod.
    pub(crate) fn exec_output(&self, pod: &str, command: &[&str]) -> Output {
        let mut all = vec!["lab", "exec", "--name", &self.name, pod, "--"];
        all.extend(command);
        output(PODWIRE, &all)
    }

    /// A program in a pod that must succeed; its standard output.
    pub(crate) fn exec(&self, pod: &str, command: &[&str]) -> String {
        success(
            &format!("in pod {pod}: {command:?}"),
            &self.exec_output(pod, command),
        )
    }

    /// A program on a node.
    pub(crate) fn node_output(&self, node: &str, command: &[&str]) -> Output {
        let mut all = vec!["lab", "node", "exec", "--name", &self.name, node, "--"];
        all.extend(command);
        output(PODWIRE, &all)
    }

    /// A program on a node that must succeed; its standard output.
    pub(crate) fn node(&self, node: &str, command: &[&str]) -> String {
        success(
            &format!("on {node}: {command:?}"),
            &self.node_output(node, command),
        )
    }

    /// A pod's addresses, IPv4 first.
    pub(crate) fn pod_addresses(&self, pod: &str) -> Vec<String> {
        let pod = self.get(&["pod", pod]);
        let mut addresses: Vec<String> = pod["status"]["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["ip"].as_str().map(str::to_owned))
            .collect();
        addresses.sort_by_key(|address| address.contains(':'));
        addresses
    }

    /// A node's addresses on the underlay, IPv4 first.
    pub(crate) fn node_addresses(&self, node: &str) -> Vec<String> {
        let node = self.get(&["node", node]);
        let mut addresses: Vec<String> = node["status"]["addresses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|entry| entry["type"] == "InternalIP")
            .filter_map(|entry| entry["address"].as_str().map(str::to_owned))
            .collect();
        addresses.sort_by_key(|address| address.contains(':'));
        addresses
    }

    /// A Service's cluster addresses, IPv4 first.
    pub(crate) fn cluster_ips(&self, service: &str) -> Vec<String> {
        let service = self.get(&["service", service]);
        let mut addresses: Vec<String> = service["spec"]["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|address| address.as_str().map(str::to_owned))
            .collect();
        addresses.sort_by_key(|address| address.contains(':'));
        addresses
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = output(PODWIRE, &["lab", "down", "--name", &self.name]);
        if !std::thread::panicking() {
            assert!(down.status.success(), "lab down: {}", printed(&down));
        }
    }
}

/// A URL with its address in brackets where it is IPv6.
pub(crate) fn url(address: &str, port: u16, path: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{port}{path}")
    } else {
        format!("http://{address}:{port}{path}")
    }
}
