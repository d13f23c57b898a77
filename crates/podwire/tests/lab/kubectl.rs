//! The lab under the real `kubectl`: the machine's own and the distribution's.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use rstest::rstest;

use crate::support::{Lab, eventually, printed, success};

/// The `kubectl` of the distribution's kubernetes-client package.
fn distribution() -> String {
    std::env::var("PODWIRE_KUBECTL_DEBIAN").unwrap_or_else(|_| {
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../target/tools/kubernetes-client/usr/bin/kubectl"
        )
        .into()
    })
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: http
        image: podwire.dev/toolbox
        ports: [{containerPort: 8080}]
";

#[rstest]
#[case::machine("kubectl".to_owned())]
#[case::distribution(distribution())]
fn kubectl_drives_the_lab(#[case] kubectl: String) {
    let lab = Lab::up(&["--nodes", "2"], "");
    let run = |arguments: &[&str]| {
        success(
            &format!("{arguments:?}"),
            &lab.kubectl_with(&kubectl, arguments, ""),
        )
    };
    let apply =
        |arguments: &[&str], manifest: &str| lab.kubectl_with(&kubectl, arguments, manifest);

    // get, wide, describe
    let nodes = run(&["get", "nodes", "-o", "wide"]);
    assert!(
        nodes.contains("node-1") && nodes.contains("Ready"),
        "{nodes}"
    );
    assert!(run(&["describe", "node", "node-1"]).contains("PodCIDR"));
    assert!(run(&["get", "namespaces"]).contains("kube-system"));
    assert!(run(&["api-resources"]).contains("deployments"));

    // apply, client and server side
    success("apply", &apply(&["apply", "-f", "-"], DEPLOYMENT));
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let again = success("apply", &apply(&["apply", "-f", "-"], DEPLOYMENT));
    assert!(again.contains("unchanged"), "{again}");
    let server_side = DEPLOYMENT
        .replace("name: web,", "name: side,")
        .replace("app: web", "app: side");
    let applied = success(
        "apply",
        &apply(&["apply", "--server-side", "-f", "-"], &server_side),
    );
    assert!(applied.contains("serverside-applied"), "{applied}");
    let conflict = apply(
        &["apply", "--server-side", "--field-manager=other", "-f", "-"],
        &server_side.replace("replicas: 1", "replicas: 2"),
    );
    assert!(
        !conflict.status.success(),
        "another manager's field is a conflict"
    );
    assert!(
        printed(&conflict).contains(".spec.replicas"),
        "{}",
        printed(&conflict)
    );

    // patch, label, annotate, set
    run(&[
        "patch",
        "deployment",
        "web",
        "-p",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"http","env":[{"name":"A","value":"1"}]}]}}}}"#,
    ]);
    assert_eq!(
        run(&[
            "get",
            "deployment",
            "web",
            "-o",
            "jsonpath={.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].env[0].name}"
        ]),
        "podwire.dev/toolbox A",
        "a strategic merge keeps what it does not name"
    );
    run(&[
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/metadata/labels/tier","value":"front"}]"#,
    ]);
    run(&[
        "patch",
        "deployment",
        "web",
        "--type=merge",
        "-p",
        r#"{"metadata":{"annotations":{"note":"x"}}}"#,
    ]);
    run(&["label", "deployment", "web", "extra=yes"]);
    assert!(run(&["get", "deployments", "-l", "extra=yes,tier in (front)"]).contains("web"));
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // scale and watch
    let mut watch = lab.kubectl_start(&kubectl, &["get", "deployment", "web", "-w"]);
    let mut lines = BufReader::new(watch.stdout.take().expect("standard output is piped")).lines();
    assert!(
        lines
            .next()
            .is_some_and(|line| line.is_ok_and(|line| line.contains("NAME")))
    );
    run(&["scale", "deployment/web", "--replicas=3"]);
    let seen = lines
        .by_ref()
        .map_while(Result::ok)
        .any(|line| line.contains("3/3"));
    assert!(seen, "get -w ended before it showed 3/3");
    watch.kill().ok();
    watch.wait().ok();

    // logs, and logs -f
    let pod = run(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    success("apply", &apply(&["apply", "-f", "-"], "
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: shell, image: 'host:', command: [sh, -c, 'n=0; while [ $n -lt 600 ]; do echo line $n; n=$((n+1)); sleep 0.1; done']}
"));
    run(&[
        "wait",
        "--for=condition=Ready",
        "pod/talker",
        "--timeout=30s",
    ]);
    let mut follow = lab.kubectl_start(&kubectl, &["logs", "-f", "talker"]);
    let lines = BufReader::new(follow.stdout.take().expect("standard output is piped")).lines();
    let followed: Vec<String> = lines.map_while(Result::ok).take(15).collect();
    follow.kill().ok();
    follow.wait().ok();
    assert_eq!(followed.first().map(String::as_str), Some("line 0"));
    assert_eq!(followed.len(), 15, "{followed:?}");
    assert_eq!(run(&["logs", "talker", "--tail=1"]).lines().count(), 1);

    // describe shows Events
    eventually("events are shown", Duration::from_secs(10), || {
        let description = run(&["describe", "pod", &pod]);
        if description.contains("Started") {
            Ok(())
        } else {
            Err(description)
        }
    });

    // an image that can't be had
    success(
        "apply",
        &apply(
            &["apply", "-f", "-"],
            "
apiVersion: v1
kind: Pod
metadata: {name: lost}
spec:
  containers: [{name: c, image: '127.0.0.1:1/no/such:image'}]
",
        ),
    );
    eventually("the reason is told", Duration::from_secs(20), || {
        let shown = run(&["get", "pod", "lost"]);
        let description = run(&["describe", "pod", "lost"]);
        if (shown.contains("ErrImagePull") || shown.contains("ImagePullBackOff"))
            && description.contains("127.0.0.1:1/no/such:image")
        {
            Ok(())
        } else {
            Err(description)
        }
    });

    // delete
    run(&[
        "delete",
        "pod",
        "lost",
        "talker",
        "--wait=true",
        "--timeout=30s",
    ]);
    run(&["delete", "deployment", "web", "side", "--timeout=30s"]);
    eventually(
        "the deployment's pods are gone",
        Duration::from_secs(30),
        || {
            let left = run(&["get", "pods", "-o", "name"]);
            if left.trim().is_empty() {
                Ok(())
            } else {
                Err(left)
            }
        },
    );
    success("namespace", &apply(&["create", "namespace", "passing"], ""));
    success(
        "apply",
        &apply(&["apply", "-n", "passing", "-f", "-"], DEPLOYMENT),
    );
    run(&["delete", "namespace", "passing", "--timeout=60s"]);

    // custom resources
    success(
        "crd",
        &apply(
            &["apply", "-f", "-"],
            "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {plural: gadgets, singular: gadget, kind: Gadget, shortNames: [gd]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [size]
            properties: {size: {type: integer, minimum: 1}}
",
        ),
    );
    run(&[
        "wait",
        "--for=condition=Established",
        "crd/gadgets.example.org",
        "--timeout=10s",
    ]);
    let gadget =
        "---\n{apiVersion: example.org/v1, kind: Gadget, metadata: {name: one}, spec: {size: 2}}";
    success("gadget", &apply(&["apply", "-f", "-"], gadget));
    assert!(run(&["get", "gd"]).contains("one"));
    let refused = apply(&["apply", "-f", "-"], &gadget.replace("size: 2", "size: 0"));
    assert!(
        printed(&refused).contains("spec.size"),
        "{}",
        printed(&refused)
    );
}

#[rstest]
#[case::machine("kubectl".to_owned())]
#[case::distribution(distribution())]
fn an_error_on_a_bad_manifest_names_the_field(#[case] kubectl: String) {
    let lab = Lab::up(&["--nodes", "1"], "");
    for (manifest, expected) in [
        (DEPLOYMENT.replace("replicas: 1", "replica: 1"), "replica"),
        (
            DEPLOYMENT.replace("replicas: 1", "replicas: many"),
            "replicas",
        ),
        (
            DEPLOYMENT.replace("containerPort: 8080", "containerPort: 80800"),
            "containerPort",
        ),
        (
            DEPLOYMENT.replace(
                "metadata: {labels: {app: web}}",
                "metadata: {labels: {app: other}}",
            ),
            "spec.template.metadata.labels",
        ),
        (
            DEPLOYMENT.replace("name: web,", "name: Web_1,"),
            "metadata.name",
        ),
        (
            "---\n{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {ports: [{port: 0}]}}"
                .to_owned(),
            "spec.ports[0].port",
        ),
        (
            "---\n{apiVersion: v1, kind: Gizmo, metadata: {name: s}}".to_owned(),
            "Gizmo",
        ),
    ] {
        let refused = lab.kubectl_with(&kubectl, &["apply", "-f", "-"], &manifest);
        assert!(!refused.status.success(), "accepted: {manifest}");
        assert!(
            printed(&refused).contains(expected),
            "{expected}: {}",
            printed(&refused)
        );
    }
}
