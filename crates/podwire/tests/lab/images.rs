//! Images from files and from a registry.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::support::{Lab, PODWIRE, eventually, output, success};

/// Makes an OCI layout with one image, `demo:1`: busybox in two layers, the
/// second of which removes a file of the first.
fn make_layout(directory: &Path) {
    let script = r#"
        set -eu
        cd "$1"
        mkdir -p layout/blobs/sha256 one/bin one/etc two/etc
        cp "$(command -v busybox)" one/bin/busybox
        ln -s busybox one/bin/sh
        echo first >one/etc/first
        echo gone >one/etc/gone
        : >two/etc/.wh.gone
        echo second >two/etc/second
        blob() { sum=$(sha256sum "$1" | cut -d' ' -f1); cp "$1" "layout/blobs/sha256/$sum"; echo "$sum"; }
        tar --owner=0 --group=0 -C one -cf one.tar .
        tar --owner=0 --group=0 -C two -cf two.tar .
        d1=$(sha256sum one.tar | cut -d' ' -f1); d2=$(sha256sum two.tar | cut -d' ' -f1)
        gzip -k one.tar two.tar
        b1=$(blob one.tar.gz); b2=$(blob two.tar.gz)
        case $(uname -m) in x86_64) arch=amd64;; aarch64) arch=arm64;; *) arch=$(uname -m);; esac
        cat >config.json <<EOF
{"architecture":"$arch","os":"linux","config":{"Env":["GREETING=hello","PATH=/bin"],
 "Entrypoint":["/bin/sh","-c"],"Cmd":["echo \$GREETING; cat /etc/first /etc/second; test ! -e /etc/gone && echo clean; exec /bin/busybox sleep 1000"],
 "WorkingDir":"/etc"},"rootfs":{"type":"layers","diff_ids":["sha256:$d1","sha256:$d2"]}}
EOF
        c=$(blob config.json)
        cat >manifest.json <<EOF
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
 "config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$c","size":$(stat -c %s config.json)},
 "layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$b1","size":$(stat -c %s one.tar.gz)},
           {"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$b2","size":$(stat -c %s two.tar.gz)}]}
EOF
        m=$(blob manifest.json)
        echo '{"imageLayoutVersion":"1.0.0"}' >layout/oci-layout
        cat >layout/index.json <<EOF
{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$m",
 "size":$(stat -c %s manifest.json),"annotations":{"org.opencontainers.image.ref.name":"demo:1"}}]}
EOF
    "#;
    success(
        "make an OCI layout",
        &output(
            "bash",
            &["-c", script, "bash", &directory.to_string_lossy()],
        ),
    );
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: {image}
"
    )
}

/// What the image's own command prints.
fn says_what_the_image_says(lab: &Lab, name: &str) {
    lab.kubectl(&[
        "wait",
        "--for=condition=Ready",
        &format!("pod/{name}"),
        "--timeout=60s",
    ]);
    eventually(
        "the image's command has printed",
        Duration::from_secs(10),
        || {
            let logs = lab.kubectl(&["logs", name]);
            if logs == "hello\nfirst\nsecond\nclean\n" {
                Ok(())
            } else {
                Err(logs)
            }
        },
    );
}

/// Debian's registry on a free port of loopback.
struct Registry {
    process: Child,
    port: u16,
}

impl Registry {
    fn start(directory: &Path) -> Registry {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let configuration = directory.join("registry.yml");
        std::fs::write(
            &configuration,
            format!(
                "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}/registry}}}}\n\
                 http: {{addr: '127.0.0.1:{port}'}}\n",
                directory.display()
            ),
        )
        .expect("the registry's configuration is written");
        let mut process = Command::new("docker-registry")
            .args(["serve".as_ref(), configuration.as_os_str()])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("docker-registry is installed by cargo xtask test");
        let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
        assert!(
            lines
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.contains("listening on")),
            "the registry did not start"
        );
        std::thread::spawn(move || lines.for_each(drop));
        Registry { process, port }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[test]
fn images_come_from_layouts_archives_and_registries() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    make_layout(directory.path());
    let layout = directory.path().join("layout");
    let oci = format!("oci:{}:demo:1", layout.display());
    let archive = directory.path().join("archive.tar");
    success(
        "skopeo makes a docker archive",
        &output(
            "skopeo",
            &[
                "copy",
                &oci,
                &format!("docker-archive:{}:archived:2", archive.display()),
            ],
        ),
    );
    let registry = Registry::start(directory.path());
    let pulled = format!("127.0.0.1:{}/shop/demo:3", registry.port);
    success(
        "skopeo fills the registry",
        &output(
            "skopeo",
            &[
                "copy",
                "--dest-tls-verify=false",
                &oci,
                &format!("docker://{pulled}"),
            ],
        ),
    );

    let lab = Lab::up(&["--nodes", "2"], "");
    for file in [&layout, &archive] {
        let load = output(
            PODWIRE,
            &["lab", "load", "--name", &lab.name, &file.to_string_lossy()],
        );
        success("lab load", &load);
    }
    let named = output(
        PODWIRE,
        &[
            "lab",
            "load",
            "--name",
            &lab.name,
            "--as",
            "mine/named",
            "-o",
            "json",
            &layout.to_string_lossy(),
        ],
    );
    let named: serde_json::Value =
        serde_json::from_str(&success("lab load --as", &named)).expect("lab load prints JSON");
    assert_eq!(named["images"][0]["name"], "docker.io/mine/named:latest");
    lab.apply(
        &[
            pod("layout", "demo:1"),
            pod("archive", "archived:2"),
            pod("named", "mine/named\n    imagePullPolicy: Never"),
            pod("pulled", &pulled),
        ]
        .concat(),
    );
    for name in ["layout", "archive", "named", "pulled"] {
        says_what_the_image_says(&lab, name);
    }

    // What the registry does not have is told by its name.
    lab.apply(&pod(
        "missing",
        &format!("127.0.0.1:{}/shop/missing:1", registry.port),
    ));
    eventually("the reason is told", Duration::from_secs(20), || {
        let description = lab.kubectl(&["describe", "pod", "missing"]);
        if description.contains("ErrImagePull") && description.contains("shop/missing") {
            Ok(())
        } else {
            Err(description)
        }
    });
}
