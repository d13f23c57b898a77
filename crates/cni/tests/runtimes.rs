//! Container runtimes as people have them start a container whose network this
//! plugin made: podman in its CNI mode, and containerd by `ctr run --cni`.
#![allow(clippy::unwrap_used, reason = "tests say what they expect with unwrap")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Node, assert_pings};
use linux::{mount, process};
use rstest::rstest;
use serde_json::json;
use tempfile::TempDir;

/// A folder with a root file system of busybox, the plugin, a config list of
/// ours, and what the runtimes keep. What runtimes write below `/run` and
/// `/sys/fs/cgroup` is this test's own.
fn machine(node: &Node, attach: &str) -> TempDir {
    process::unshare_mounts().unwrap();
    mount::make_private(Path::new("/")).unwrap();
    mount::tmpfs(Path::new("/run"), "").unwrap();
    // crun and runc know either version of control groups, not both at once.
    mount::unmount(Path::new("/sys/fs/cgroup"), true).unwrap();
    mount::cgroup2(Path::new("/sys/fs/cgroup")).unwrap();

    let folder = TempDir::new().unwrap();
    let path = folder.path();
    for below in [
        "rootfs/bin",
        "rootfs/dev",
        "rootfs/etc",
        "rootfs/proc",
        "rootfs/sys",
        "net",
        "bin",
    ] {
        fs::create_dir_all(path.join(below)).unwrap();
    }
    fs::copy("/bin/busybox", path.join("rootfs/bin/busybox")).unwrap();
    let mut plugin = node.configuration(attach);
    for key in ["cniVersion", "name"] {
        plugin.as_object_mut().unwrap().remove(key);
    }
    // podman's older library of the two speaks up to this version.
    let list = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]});
    fs::write(path.join("net/10-pods.conflist"), list.to_string()).unwrap();
    fs::copy(
        env!("CARGO_BIN_EXE_podwire-cni"),
        path.join("bin/podwire-cni"),
    )
    .unwrap();
    folder
}

/// What the container does: shows its addresses, and ends when it is let go.
const SCRIPT: &str = "busybox ip -o addr show eth0; busybox echo end; \
                      while ! busybox test -e /go; do busybox usleep 10000; done";

/// Follows a container from its first words to its end; its addresses are
/// reached from the node in between, and nothing is left after.
fn follow(node: &Node, machine: &TempDir, command: &mut Command) {
    let mut child = node
        .namespace
        .run(|| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .unwrap();
    let mut addresses: Vec<IpAddr> = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.trim() == "end" {
            break;
        }
        let mut words = line
            .split_whitespace()
            .skip_while(|word| !word.starts_with("inet"));
        let address = words.nth(1).and_then(|word| word.split('/').next());
        addresses.extend(address.and_then(|address| address.parse::<IpAddr>().ok()));
    }
    for expected in ["10.200.1.2", "fd00:200:0:1::2"] {
        let expected: IpAddr = expected.parse().unwrap();
        if !addresses.contains(&expected) {
            let _ = fs::write(machine.path().join("rootfs/go"), "");
            let output = child.wait_with_output().unwrap();
            panic!("{expected} is not among {addresses:?}: {output:?}");
        }
        assert_pings(&node.namespace, expected);
    }
    fs::write(machine.path().join("rootfs/go"), "").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    node.assert_clean();
}

#[rstest]
#[case::bridge("bridge")]
#[case::routed("routed")]
fn podman_starts_a_container_on_our_network(#[case] attach: &str) {
    let node = Node::new();
    let machine = machine(&node, attach);
    let path = machine.path();
    let configuration = format!(
        "[network]\n\
         network_backend = \"cni\"\n\
         network_config_dir = \"{path}/net\"\n\
         cni_plugin_dirs = [\"{path}/bin\"]\n\
         default_network = \"pods\"\n\
         [engine]\n\
         cgroup_manager = \"cgroupfs\"\n\
         events_logger = \"none\"\n\
         [containers]\n\
         log_driver = \"none\"\n",
        path = path.display()
    );
    let file = path.join("containers.conf");
    fs::write(&file, configuration).unwrap();
    let below = |name: &str| path.join(name).display().to_string();
    let mut command = Command::new("podman");
    command
        .env("CONTAINERS_CONF", &file)
        .args(["--root", &below("root"), "--runroot", &below("runroot")])
        .args(["--storage-driver", "vfs", "--runtime", "crun"])
        .args([
            "run",
            "--rm",
            "-i",
            "--cgroups=disabled",
            "--network",
            "pods",
        ])
        // podman would raise them, which not every machine's root may.
        .args([
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ])
        .args(["--security-opt", "seccomp=unconfined", "--rootfs"])
        .args([&below("rootfs"), "/bin/busybox", "sh", "-c", SCRIPT]);
    follow(&node, &machine, &mut command);
}

/// A containerd of the test's own; stopped with it.
struct Containerd(Child);

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn containerd_starts_a_container_on_our_network() {
    let node = Node::new();
    let machine = machine(&node, "routed");
    let path = machine.path();
    // `ctr run --cni` knows these two folders only.
    mount::bind(&path.join("net"), Path::new("/etc/cni/net.d")).unwrap();
    mount::tmpfs(Path::new("/opt"), "").unwrap();
    fs::create_dir_all("/opt/cni/bin").unwrap();
    fs::copy(path.join("bin/podwire-cni"), "/opt/cni/bin/podwire-cni").unwrap();
    // Devices of control groups take a capability that not every root has.
    let runtime = path.join("runtime");
    fs::write(
        &runtime,
        "#!/bin/sh\nexec crun --cgroup-manager=disabled \"$@\"\n",
    )
    .unwrap();
    fs::set_permissions(&runtime, PermissionsExt::from_mode(0o755)).unwrap();
    let configuration = format!(
        "version = 2\n\
         root = \"{path}/containerd\"\n\
         state = \"/run/containerd\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\n\
         address = \"/run/containerd.sock\"\n",
        path = path.display()
    );
    let file = path.join("containerd.toml");
    fs::write(&file, configuration).unwrap();
    let log = fs::File::create(path.join("containerd.log")).unwrap();
    let _containerd = Containerd(
        node.namespace
            .run(|| {
                Command::new("containerd")
                    .arg("--config")
                    .arg(&file)
                    .stdout(log.try_clone().unwrap())
                    .stderr(log)
                    .spawn()
                    .unwrap()
            })
            .unwrap(),
    );
    let ctr = || {
        let mut command = Command::new("ctr");
        command.args(["--address", "/run/containerd.sock"]);
        command
    };
    common::eventually("containerd answers", || {
        let output = ctr().arg("version").output().unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(output)
        }
    });
    let mut command = ctr();
    command
        .args(["run", "--rm", "--cni", "--runc-binary"])
        .arg(&runtime)
        .arg("--rootfs")
        .arg(path.join("rootfs"))
        .args(["one", "/bin/busybox", "sh", "-c", SCRIPT]);
    follow(&node, &machine, &mut command);
}
