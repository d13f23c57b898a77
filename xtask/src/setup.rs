//! Installs the programs podwire needs on Debian and Ubuntu.

use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::shell;

/// What the machine is made ready for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Building and running a lab.
    Run,
    /// Also every test and its witnesses.
    Test,
}

/// A program and the package that brings it.
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: Purpose,
}

const fn run(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        purpose: Purpose::Run,
    }
}

const fn test(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        purpose: Purpose::Test,
    }
}

const PROGRAMS: &[Program] = &[
    // The linker, and the C and assembly of the cryptography library.
    run("cc", "build-essential"),
    // The OCI runtime that starts the containers of a lab.
    run("crun", "crun"),
    run("curl", "curl"),
    // Independent witnesses.
    test("conntrack", "conntrack"),
    test("ip", "iproute2"),
    test("nft", "nftables"),
    test("ping", "iputils-ping"),
    test("strace", "strace"),
    test("tcpdump", "tcpdump"),
    test("unshare", "util-linux"),
    // Peers: a registry to pull from and a tool that fills it.
    test("docker-registry", "docker-registry"),
    test("skopeo", "skopeo"),
    test("busybox", "busybox-static"),
];

/// Files that are no programs of the search path.
const FILES: &[(&str, &str)] = &[("/usr/lib/cni/bridge", "containernetworking-plugins")];

/// Installs what is missing, asking for the user's password by `sudo` where
/// this process is not root.
pub(crate) fn install(purpose: Purpose) -> anyhow::Result<()> {
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|program| purpose == Purpose::Test || program.purpose == Purpose::Run)
        .filter(|program| shell::find(program.name).is_none())
        .map(|program| program.package)
        .collect();
    if purpose == Purpose::Test {
        packages.extend(
            FILES
                .iter()
                .filter(|(file, _)| !PathBuf::from(file).exists())
                .map(|(_, name)| *name),
        );
    }
    let kubectl_missing = shell::find("kubectl").is_none();
    if !packages.is_empty() || kubectl_missing {
        if shell::find("apt-get").is_none() {
            bail!(
                "these are missing and this machine has no apt-get to install them with: {}; \
                 install them with the machine's own package manager and run this again",
                packages.join(" ")
            );
        }
        shell::run(shell::root_command("apt-get", &["update", "-qq"]))?;
        let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
        arguments.extend(&packages);
        if kubectl_missing {
            arguments.push("kubernetes-client");
        }
        let mut command =
            shell::root_command("env", &["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command.args(arguments);
        shell::run(command)?;
    }
    if purpose == Purpose::Test {
        distribution_kubectl()?;
        cargo_tool("nextest", "cargo-nextest")?;
        cargo_tool("deny", "cargo-deny")?;
    }
    Ok(())
}

/// The distribution's own `kubectl` beside whatever the machine has: years
/// older than the machine's may be, so that the tests drive the lab with both.
/// Unpacked below `target`, never installed.
pub(crate) fn distribution_kubectl() -> anyhow::Result<PathBuf> {
    let directory = shell::root().join("target/tools/kubernetes-client");
    let kubectl = directory.join("usr/bin/kubectl");
    if kubectl.is_file() {
        return Ok(kubectl);
    }
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut download = shell::command("apt-get", &["download", "-qq", "kubernetes-client"]);
    download.current_dir(&directory);
    if shell::run(download).is_err() {
        // The package lists may never have been fetched on this machine.
        shell::run(shell::root_command("apt-get", &["update", "-qq"]))?;
        let mut download = shell::command("apt-get", &["download", "-qq", "kubernetes-client"]);
        download.current_dir(&directory);
        shell::run(download)?;
    }
    let package = std::fs::read_dir(&directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package of kubernetes-client")?;
    let mut unpack = shell::command("dpkg-deb", &["-x"]);
    unpack.arg(&package).arg(&directory);
    shell::run(unpack)?;
    Ok(kubectl)
}

/// Installs a cargo subcommand from its source where it is missing. Built
/// without optimisation: it runs for seconds and would compile for minutes.
fn cargo_tool(subcommand: &str, package: &str) -> anyhow::Result<()> {
    let mut probe = shell::command("cargo", &[subcommand, "--version"]);
    probe
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let mut command = shell::command("cargo", &["install", "--locked", "--debug", package]);
    command.env("CARGO_PROFILE_DEV_DEBUG", "0");
    shell::run(command)
}
