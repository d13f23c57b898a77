//! Images made here, pushed to Debian's registry or packed by skopeo, and run.
#![allow(clippy::unwrap_used, reason = "tests say what they expect")]

mod node;

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::core::v1::Pod;
use node::{container, phase};
use podwire_kubelet::images::Store;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Writes a blob of a layout; its descriptor.
fn blob(layout: &Path, kind: &str, bytes: &[u8]) -> Value {
    let hex = hex(bytes);
    std::fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
    json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content).unwrap();
}

/// The machine's shell with its libraries, and files to tell layers apart.
fn layers() -> [Vec<u8>; 2] {
    let mut lower = tar::Builder::new(Vec::new());
    let libraries = Command::new("ldd").arg("/bin/sh").output().unwrap();
    let text = String::from_utf8(libraries.stdout).unwrap();
    let files = text.split_whitespace().filter(|word| word.starts_with('/'));
    for file in files.chain(["/bin/sh"]) {
        add(&mut lower, &file[1..], &std::fs::read(file).unwrap(), 0o755);
    }
    add(&mut lower, "data/kept", b"kept", 0o644);
    add(&mut lower, "data/removed", b"removed", 0o644);
    add(
        &mut lower,
        "etc/passwd",
        b"root:x:0:0::/:\nuser:x:123:456::/home:\n",
        0o644,
    );
    let mut upper = tar::Builder::new(Vec::new());
    add(&mut upper, "data/.wh.removed", b"", 0o644);
    add(&mut upper, "data/added", b"added", 0o644);
    [lower.into_inner().unwrap(), upper.into_inner().unwrap()]
}

/// An OCI layout with an index of two platforms, one of them this machine's.
fn layout(dir: &Path, name: &str) {
    std::fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let [lower, upper] = layers();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&lower).unwrap();
    let gzip = gzip.finish().unwrap();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": {
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["echo $GREETING; pwd; echo /data/*; while read -r key value; do case $key in Uid:|Gid:) echo $key $value;; esac; done </proc/self/status"],
            "Env": ["GREETING=hello", "PATH=/bin"], "WorkingDir": "/data", "User": "user",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&lower)), format!("sha256:{}", hex(&upper))]},
    });
    let config = blob(
        dir,
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config,
        "layers": [
            blob(dir, "application/vnd.oci.image.layer.v1.tar+gzip", &gzip),
            blob(dir, "application/vnd.oci.image.layer.v1.tar", &upper),
        ],
    });
    let mut manifest = blob(
        dir,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

const EXPECTED: &str =
    "hello\n/data\n/data/added /data/kept\nUid: 123 123 123 123\nGid: 456 456 456 456\n";

fn skopeo(arguments: &[&str]) {
    let done = Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

async fn registry() -> Child {
    let config = "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: /run/registry}}\nhttp: {addr: '127.0.0.1:5000'}\n";
    std::fs::write("/run/registry.yml", config).unwrap();
    let child = Command::new("docker-registry")
        .args(["serve", "/run/registry.yml"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    node::eventually("the registry does not listen", || {
        std::net::TcpStream::connect("127.0.0.1:5000").is_ok()
    })
    .await;
    child
}

async fn runs(node: &node::Node, name: &str, image: &str, policy: &str) -> Pod {
    let spec = json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "image": image, "imagePullPolicy": policy}
    ]});
    node.run_pod(name, spec).await;
    let pod = node.wait(name, |pod| phase(pod) == "Succeeded").await;
    assert_eq!(node.log(&pod, "a", 0), EXPECTED, "{image}");
    pod
}

#[test]
fn an_image_is_pulled_from_a_registry() {
    node::test("an_image_is_pulled_from_a_registry", |node| async move {
        let dir = Path::new("/run/layout");
        layout(dir, "localhost/app:v1");
        let mut registry = registry().await;
        skopeo(&[
            "--dest-tls-verify=false",
            "oci:/run/layout:localhost/app:v1",
            "docker://127.0.0.1:5000/team/app:v1",
        ]);
        let pod = runs(&node, "tag", "127.0.0.1:5000/team/app:v1", "Always").await;
        let id = container(&pod, "a").unwrap().image_id;
        // By digest, and with the registry gone what is in the store goes on.
        let digest = id.split('@').nth(1).unwrap();
        runs(
            &node,
            "digest",
            &format!("127.0.0.1:5000/team/app@{digest}"),
            "IfNotPresent",
        )
        .await;
        registry.kill().unwrap();
        registry.wait().unwrap();
        runs(
            &node,
            "stored",
            "127.0.0.1:5000/team/app:v1",
            "IfNotPresent",
        )
        .await;
        let events = node.events("tag").await;
        assert!(
            events.iter().any(|e| e.starts_with("Pulling:")),
            "{events:?}"
        );
        assert!(
            events.iter().any(|e| e.starts_with("Pulled: Successfully")),
            "{events:?}"
        );
    });
}

#[test]
fn images_are_loaded_from_layouts_and_archives() {
    node::test(
        "images_are_loaded_from_layouts_and_archives",
        |node| async move {
            layout(Path::new("/run/layout"), "localhost/app:v1");
            skopeo(&[
                "oci:/run/layout:localhost/app:v1",
                "oci-archive:/run/oci.tar:localhost/packed:v1",
            ]);
            skopeo(&[
                "oci:/run/layout:localhost/app:v1",
                "docker-archive:/run/docker.tar:localhost/docker:v1",
            ]);
            let store = Store::open("/var/lib/podwire/images").unwrap();
            for (file, image) in [
                ("/run/layout", "localhost/app:v1"),
                ("/run/oci.tar", "localhost/packed:v1"),
                ("/run/docker.tar", "localhost/docker:v1"),
            ] {
                let loaded = store.load(Path::new(file), None).unwrap();
                assert_eq!(loaded[0].name, image);
                let name = image.replace(['/', ':'], "-");
                runs(&node, &name, image, "Never").await;
            }
            // Under a name of the user's choice; the layers are there already.
            store
                .load(Path::new("/run/docker.tar"), Some("other/name"))
                .unwrap();
            assert!(store.get("docker.io/other/name:latest").unwrap().is_some());
            let layers = std::fs::read_dir("/var/lib/podwire/images/layers")
                .unwrap()
                .count();
            assert_eq!(layers, 2);
            assert!(store.load(Path::new("/etc/passwd"), None).is_err());
        },
    );
}

#[test]
fn an_image_that_can_not_be_had_says_why() {
    node::test("an_image_that_can_not_be_had_says_why", |node| async move {
        let mut registry = registry().await;
        for (name, image, policy, reason, word) in [
            (
                "absent",
                "127.0.0.1:5000/no/such:v1",
                "Always",
                "ErrImagePull",
                "manifest unknown",
            ),
            (
                "nobody",
                "127.0.0.1:5999/x:v1",
                "Always",
                "ErrImagePull",
                "refused",
            ),
            (
                "never",
                "localhost/x:v1",
                "Never",
                "ErrImageNeverPull",
                "Never",
            ),
            (
                "wrong",
                "UPPER/case",
                "Always",
                "InvalidImageName",
                "lower-case",
            ),
        ] {
            node.run_pod(
                name,
                json!({"containers": [
                    {"name": "a", "image": image, "imagePullPolicy": policy}
                ]}),
            )
            .await;
            let waiting = |pod: &Pod| container(pod, "a")?.state?.waiting;
            let pod = node
                .wait(name, |pod| {
                    waiting(pod).and_then(|w| w.reason).as_deref() == Some(reason)
                })
                .await;
            let message = waiting(&pod).unwrap().message.unwrap();
            assert!(message.contains(word), "{message}");
        }
        node.wait("absent", |pod| {
            let waiting = container(pod, "a")
                .and_then(|c| c.state)
                .and_then(|s| s.waiting);
            waiting.and_then(|w| w.reason).as_deref() == Some("ImagePullBackOff")
        })
        .await;
        let events = node.events("absent").await;
        assert!(
            events.iter().any(|e| e.contains("manifest unknown")),
            "{events:?}"
        );
        node.delete("absent", 1).await;
        registry.kill().unwrap();
        registry.wait().unwrap();
    });
}
