//! The real `kubectl`, of two generations, against a server on loopback.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod support;

use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;

use podwire_apiserver::Server;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

struct Kubectl {
    binary: PathBuf,
    dir: tempfile::TempDir,
    server: Arc<Server>,
}

struct Ran {
    ok: bool,
    out: String,
    err: String,
}

impl Kubectl {
    async fn with(binary: PathBuf) -> Self {
        // In memory: each change would wait for the disk, which nothing here is about.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let server = Arc::new(Server::open(support::config(dir.path())).await.unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        server
            .write_kubeconfig(&dir.path().join("kubeconfig"), &url)
            .unwrap();
        let serving = Arc::clone(&server);
        tokio::spawn(async move { serving.serve(vec![listener]).await.unwrap() });
        Self {
            binary,
            dir,
            server,
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .env("HOME", self.dir.path())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Ran {
        self.feed(args, "").await
    }

    async fn feed(&self, args: &[&str], input: &str) -> Ran {
        let mut child = self
            .command(args)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let Output {
            status,
            stdout,
            stderr,
        } = child.wait_with_output().await.unwrap();
        Ran {
            ok: status.success(),
            out: String::from_utf8(stdout).unwrap(),
            err: String::from_utf8(stderr).unwrap(),
        }
    }

    #[track_caller]
    fn same(ran: &Ran, expected: &str) {
        assert_eq!(ran.out.trim(), expected, "{}", ran.err);
    }
}

impl Drop for Kubectl {
    fn drop(&mut self) {
        self.server.shutdown();
    }
}

/// The kubectl in the path, and that of Debian's kubernetes-client if its
/// place is given or it was unpacked in the cache.
fn binaries() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("kubectl")];
    let cached = || {
        let home = PathBuf::from(std::env::var_os("HOME")?);
        let path = home.join(".cache/podwire/kubernetes-client/usr/bin/kubectl");
        path.exists().then_some(path)
    };
    found.extend(
        std::env::var_os("PODWIRE_KUBECTL_DEBIAN")
            .map(PathBuf::from)
            .or_else(cached),
    );
    found
}

async fn each(test: impl AsyncFn(&Kubectl)) {
    for binary in binaries() {
        eprintln!("with {}", binary.display());
        let kubectl = Kubectl::with(binary).await;
        test(&kubectl).await;
    }
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: podwire.dev/toolbox
        ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn apply_creates_then_changes_then_finds_nothing_to_do() {
    each(async |k| {
        let ran = k.feed(&["apply", "-f", "-"], WEB).await;
        Kubectl::same(&ran, "deployment.apps/web created\nservice/web created");
        let ran = k.feed(&["apply", "-f", "-"], WEB).await;
        Kubectl::same(&ran, "deployment.apps/web unchanged\nservice/web unchanged");
        let ran = k
            .feed(
                &["apply", "-f", "-"],
                &WEB.replace("replicas: 2", "replicas: 3"),
            )
            .await;
        Kubectl::same(
            &ran,
            "deployment.apps/web configured\nservice/web unchanged",
        );
        let ran = k
            .run(&[
                "get",
                "deploy",
                "web",
                "-o",
                "jsonpath={.spec.replicas} {.metadata.generation}",
            ])
            .await;
        Kubectl::same(&ran, "3 2");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_label_patch_and_delete_work() {
    each(async |k| {
        let ran = k.feed(&["apply", "-f", "-"], WEB).await;
        assert!(ran.ok, "{}", ran.err);
        let ran = k.run(&["scale", "deployment/web", "--replicas=5"]).await;
        Kubectl::same(&ran, "deployment.apps/web scaled");
        let ran = k.run(&["label", "deployment/web", "tier=front"]).await;
        Kubectl::same(&ran, "deployment.apps/web labeled");
        let ran = k
            .run(&["patch", "deployment", "web", "-p", r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","value":"b"}]}]}}}}"#])
            .await;
        Kubectl::same(&ran, "deployment.apps/web patched");
        let ran = k
            .run(&["patch", "deployment", "web", "--type=json", "-p", r#"[{"op":"replace","path":"/spec/replicas","value":4}]"#])
            .await;
        Kubectl::same(&ran, "deployment.apps/web patched");
        let ran = k
            .run(&["get", "deployment", "-l", "tier=front", "-o", "jsonpath={.items[0].spec.replicas} {.items[0].spec.template.spec.containers[0].image} {.items[0].spec.template.spec.containers[0].env[0].value}"])
            .await;
        Kubectl::same(&ran, "4 podwire.dev/toolbox b");
        let ran = k.run(&["delete", "deployment/web", "service/web"]).await;
        Kubectl::same(&ran, "deployment.apps \"web\" deleted\nservice \"web\" deleted");
        let ran = k.run(&["get", "deployment", "web"]).await;
        assert!(!ran.ok);
        Kubectl::same(&Ran { out: ran.err, ok: false, err: String::new() }, "Error from server (NotFound): deployments.apps \"web\" not found");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn get_prints_tables() {
    each(async |k| {
        let ran = k.feed(&["apply", "-f", "-"], WEB).await;
        assert!(ran.ok, "{}", ran.err);
        let ran = k.run(&["get", "all"]).await;
        assert!(ran.ok, "{}", ran.err);
        assert!(ran.out.contains("deployment.apps/web"), "{}", ran.out);
        assert!(ran.out.contains("service/kubernetes"), "{}", ran.out);
        let ran = k.run(&["get", "svc", "kubernetes"]).await;
        let line: Vec<&str> = ran.out.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            line[..5],
            ["kubernetes", "ClusterIP", "10.96.0.1", "<none>", "443/TCP"]
        );
        let ran = k.run(&["get", "deploy"]).await;
        let header: Vec<&str> = ran.out.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(header, ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
        let ran = k.run(&["get", "pods"]).await;
        assert_eq!(ran.err.trim(), "No resources found in default namespace.");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn create_makes_objects_without_manifests() {
    each(async |k| {
        for (args, expected) in [
            ("create namespace x", "namespace/x created"),
            (
                "create configmap m --from-literal=a=b",
                "configmap/m created",
            ),
            (
                "create secret generic s --from-literal=a=b",
                "secret/s created",
            ),
            ("create serviceaccount u", "serviceaccount/u created"),
            ("create deployment d --image=i", "deployment.apps/d created"),
            (
                "create service nodeport n --tcp=80:8080",
                "service/n created",
            ),
            ("run p --image=i", "pod/p created"),
            ("expose deployment d --port=80", "service/d exposed"),
        ] {
            let args: Vec<&str> = args.split(' ').collect();
            Kubectl::same(&k.run(&args).await, expected);
        }
        let path = "jsonpath={.data.a}";
        Kubectl::same(&k.run(&["get", "secret", "s", "-o", path]).await, "Yg==");
        let path = "jsonpath={.spec.ports[0].port} {.spec.ports[0].targetPort}";
        Kubectl::same(
            &k.run(&["get", "service", "n", "-o", path]).await,
            "80 8080",
        );
    })
    .await;
}

fn map(name: &str, data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {data}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn get_watch_prints_a_line_for_each_change() {
    each(async |k| {
        let mut child = k
            .command(&["get", "configmaps", "-w"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ran = k.feed(&["create", "-f", "-"], &map("one", "{a: b}")).await;
        assert!(ran.ok, "{}", ran.err);
        let header = lines.next_line().await.unwrap().unwrap();
        assert_eq!(
            header.split_whitespace().collect::<Vec<_>>(),
            ["NAME", "DATA", "AGE"]
        );
        let line = lines.next_line().await.unwrap().unwrap();
        assert!(line.starts_with("one    1 "), "{line:?}");
        let ran = k.feed(&["create", "-f", "-"], &map("two", "{}")).await;
        assert!(ran.ok, "{}", ran.err);
        let line = lines.next_line().await.unwrap().unwrap();
        assert!(line.starts_with("two    0 "), "{line:?}");
        child.kill().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_manifests_name_the_field() {
    each(async |k| {
        let bad = WEB.replace(
            "image: podwire.dev/toolbox",
            "image: x\n        imagePullPolice: Never",
        );
        let ran = k.feed(&["apply", "-f", "-"], &bad).await;
        assert!(!ran.ok);
        assert!(ran.err.contains("imagePullPolice"), "{}", ran.err);
        let bad = WEB.replace("replicas: 2", "replicas: many");
        let ran = k.feed(&["apply", "-f", "-"], &bad).await;
        assert!(!ran.ok);
        assert!(ran.err.contains("replicas"), "{}", ran.err);
        let bad = WEB.replace("port: 80,", "port: 80000,");
        let ran = k.feed(&["apply", "-f", "-"], &bad).await;
        assert!(!ran.ok);
        assert!(
            ran.err.contains(
                "spec.ports[0].port: Invalid value: 80000: must be between 1 and 65535, inclusive"
            ),
            "{}",
            ran.err
        );
        let bad = WEB.replace("kind: Service", "kind: Servize");
        let ran = k.feed(&["apply", "-f", "-"], &bad).await;
        assert!(!ran.ok);
        assert!(
            ran.err
                .contains("no matches for kind \"Servize\" in version \"v1\""),
            "{}",
            ran.err
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_describe_and_explain_work() {
    each(async |k| {
        let ran = k.run(&["api-resources", "--no-headers"]).await;
        assert!(ran.ok, "{}", ran.err);
        for line in ["deployments", "endpointslices", "customresourcedefinitions"] {
            assert!(ran.out.contains(line), "{}", ran.out);
        }
        let ran = k.feed(&["apply", "-f", "-"], WEB).await;
        assert!(ran.ok, "{}", ran.err);
        let ran = k.run(&["describe", "service/web", "deployment/web"]).await;
        assert!(ran.ok, "{}", ran.err);
        assert!(ran.out.contains("Selector:"), "{}", ran.out);
        let ran = k.run(&["explain", "deployment.spec.replicas"]).await;
        assert!(ran.ok, "{}", ran.err);
        assert!(ran.out.contains("<integer>"), "{}", ran.out);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_side_apply_owns_fields_and_reports_conflicts() {
    each(async |k| {
        let ran = k.feed(&["apply", "--server-side", "-f", "-"], WEB).await;
        Kubectl::same(
            &ran,
            "deployment.apps/web serverside-applied\nservice/web serverside-applied",
        );
        let other = WEB.replace("replicas: 2", "replicas: 7");
        let ran = k
            .feed(
                &["apply", "--server-side", "--field-manager=other", "-f", "-"],
                &other,
            )
            .await;
        assert!(!ran.ok);
        assert!(ran.err.contains("conflict with \"kubectl\""), "{}", ran.err);
        assert!(ran.err.contains(".spec.replicas"), "{}", ran.err);
        let ran = k
            .feed(
                &[
                    "apply",
                    "--server-side",
                    "--force-conflicts",
                    "--field-manager=other",
                    "-f",
                    "-",
                ],
                &other,
            )
            .await;
        assert!(ran.ok, "{}", ran.err);
        let ran = k
            .run(&[
                "get",
                "deployment",
                "web",
                "-o",
                "jsonpath={.spec.replicas}",
            ])
            .await;
        Kubectl::same(&ran, "7");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_printed_and_followed() {
    each(async |k| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {nodeName: n1, containers: [{name: c, image: i}]}\n";
        let ran = k.feed(&["create", "-f", "-"], pod).await;
        assert!(ran.ok, "{}", ran.err);
        let uid = k.run(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"]).await.out;
        let dir = k.dir.path().join(format!("logs/n1/default_p_{uid}/c"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("0.log"), "2026-01-01T00:00:01Z stdout F hello\n").unwrap();
        let ran = k.run(&["logs", "p"]).await;
        Kubectl::same(&ran, "hello");
        let mut child = k
            .command(&["logs", "-f", "p"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "hello");
        let mut file = std::fs::OpenOptions::new().append(true).open(dir.join("0.log")).unwrap();
        std::io::Write::write_all(&mut file, b"2026-01-01T00:00:02Z stdout F again\n").unwrap();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "again");
        let ran = k.run(&["delete", "pod", "p", "--grace-period=0", "--force"]).await;
        assert!(ran.ok, "{}", ran.err);
        assert_eq!(lines.next_line().await.unwrap(), None);
        assert!(child.wait().await.unwrap().success());
    })
    .await;
}

const WIDGETS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wd]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.size, statusReplicasPath: .status.size}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties:
              size: {type: integer, minimum: 1}
              colour: {type: string, default: red}
          status:
            type: object
            properties: {size: {type: integer}}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_are_ordinary_resources() {
    each(async |k| {
        let ran = k.feed(&["apply", "-f", "-"], WIDGETS).await;
        assert!(ran.ok, "{}", ran.err);
        let ran = k
            .run(&[
                "wait",
                "--for=condition=Established",
                "crd/widgets.example.com",
                "--timeout=10s",
            ])
            .await;
        assert!(ran.ok, "{}", ran.err);
        let widget =
            "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\nspec: {size: 3}\n";
        let ran = k.feed(&["apply", "-f", "-"], widget).await;
        Kubectl::same(&ran, "widget.example.com/w created");
        let ran = k.run(&["get", "wd"]).await;
        let lines: Vec<Vec<&str>> = ran
            .out
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["NAME", "SIZE"]);
        assert_eq!(lines[1], ["w", "3"]);
        let ran = k
            .run(&["get", "widget", "w", "-o", "jsonpath={.spec.colour}"])
            .await;
        Kubectl::same(&ran, "red");
        let ran = k.run(&["scale", "widget/w", "--replicas=5"]).await;
        assert!(ran.ok, "{}", ran.err);
        let ran = k
            .feed(&["apply", "-f", "-"], &widget.replace("size: 3", "size: 0"))
            .await;
        assert!(!ran.ok);
        assert!(ran.err.contains("spec.size"), "{}", ran.err);
        let ran = k.run(&["delete", "crd", "widgets.example.com"]).await;
        assert!(ran.ok, "{}", ran.err);
        let ran = k.run(&["get", "widgets"]).await;
        assert!(!ran.ok);
    })
    .await;
}
