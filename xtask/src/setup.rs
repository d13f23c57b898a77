//! Installs the programs podwire needs on Debian and Ubuntu.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::shell;

/// What the machine is made ready for.
/// Each of the first three includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Building and running a lab.
    Run,
    /// Benchmarks and their peers.
    Bench,
    /// Also every test and its witnesses.
    Test,
    /// Benchmarks, and the peers of DNS: Debian's unbound starts a server when it
    /// is installed, which nobody wants who only tests.
    BenchDns,
}

impl Purpose {
    fn includes(self, other: Self) -> bool {
        other <= self && (self, other) != (Self::BenchDns, Self::Test)
    }
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

const fn bench(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        purpose: Purpose::Bench,
    }
}

const fn test(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        purpose: Purpose::Test,
    }
}

const fn bench_dns(name: &'static str, package: &'static str) -> Program {
    Program {
        name,
        package,
        purpose: Purpose::BenchDns,
    }
}

const PROGRAMS: &[Program] = &[
    // The linker, and the C and assembly of the cryptography library.
    run("cc", "build-essential"),
    // The OCI runtime that starts the containers of a lab.
    run("crun", "crun"),
    run("curl", "curl"),
    // Peers in benchmarks and witnesses in tests.
    bench("ip", "iproute2"),
    bench("iptables-legacy-restore", "iptables"),
    // Also what the iptables proxy runs.
    bench("iptables-nft-restore", "iptables"),
    bench("nft", "nftables"),
    // Independent witnesses.
    test("conntrack", "conntrack"),
    test("dig", "bind9-dnsutils"),
    test("ping", "iputils-ping"),
    test("strace", "strace"),
    test("tcpdump", "tcpdump"),
    test("unshare", "util-linux"),
    // Peers: a registry to pull from and a tool that fills it.
    test("docker-registry", "docker-registry"),
    test("skopeo", "skopeo"),
    test("busybox", "busybox-static"),
    // Peers: a DNS server to stand in front of, and programs linked with musl.
    test("dnsmasq", "dnsmasq-base"),
    test("musl-gcc", "musl-tools"),
    // Peers: runtimes that use the CNI plugin.
    test("containerd", "containerd"),
    test("podman", "podman"),
    // A virtual machine for what the running kernel lacks, and the witnesses in it.
    test("qemu-system-x86_64", "qemu-system-x86"),
    test("setpriv", "util-linux"),
    test("ipvsadm", "ipvsadm"),
    test("wg", "wireguard-tools"),
    bench_dns("dnsperf", "dnsperf"),
    bench_dns("unbound", "unbound"),
];

/// Files that are no programs of the search path.
const FILES: &[(&str, &str)] = &[("/usr/lib/cni/bridge", "containernetworking-plugins")];

/// Installs what is missing, asking for the user's password by `sudo` where
/// this process is not root.
pub(crate) fn install(purpose: Purpose) -> anyhow::Result<()> {
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|program| purpose.includes(program.purpose))
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
        virtual_machine_kernel()?;
        link_managers()?;
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
    download("kubernetes-client", &directory)?;
    Ok(kubectl)
}

/// The newest of Debian's small kernels, which the tests boot in a virtual machine
/// where the running kernel lacks something. Unpacked below `target`, never
/// installed. A distribution that has none goes without: its own kernels have
/// modules for all that is tested.
fn virtual_machine_kernel() -> anyhow::Result<()> {
    let directory = shell::root().join("target/tools/kernel");
    if directory.join("boot").is_dir() {
        return Ok(());
    }
    let mut package = newest_small_kernel()?;
    if package.is_none() {
        // The package lists may never have been fetched on this machine.
        shell::run(shell::root_command("apt-get", &["update", "-qq"]))?;
        package = newest_small_kernel()?;
    }
    let Some(package) = package else {
        eprintln!(
            "the package sources of this machine have no linux-image-*-cloud-amd64: tests that \
             need more than the running kernel has will fail and say what it lacks"
        );
        return Ok(());
    };
    whole(&directory, |unfinished| download(&package, unfinished))
}

/// `systemd-networkd`, `systemd-udevd` and NetworkManager with the libraries they
/// need and the machine lacks, which tests start in namespaces. Unpacked below
/// `target`, never installed: NetworkManager would take the machine's own
/// interfaces over.
fn link_managers() -> anyhow::Result<()> {
    let directory = shell::root().join("target/tools/link-managers");
    if directory.is_dir() {
        return Ok(());
    }
    whole(&directory, |unfinished| {
        let fetch = || {
            // What is installed already is fetched too: of one version with the rest.
            let mut command = shell::command(
                "apt-get",
                &["install", "--reinstall", "--download-only", "-y", "-qq"],
            );
            command
                .args(["--no-install-recommends", "-o", "Debug::NoLocking=1", "-o"])
                .arg(format!("Dir::Cache::archives={}", unfinished.display()))
                .args(["dbus-daemon", "network-manager", "systemd", "udev"]);
            shell::run(command)
        };
        // Where apt-get keeps what it has not whole yet.
        let partial = unfinished.join("partial");
        std::fs::create_dir(&partial)
            .with_context(|| format!("cannot make {}", partial.display()))?;
        if fetch().is_err() {
            // The package lists may never have been fetched on this machine.
            shell::run(shell::root_command("apt-get", &["update", "-qq"]))?;
            fetch()?;
        }
        std::fs::remove_dir_all(&partial)
            .with_context(|| format!("cannot remove {}", partial.display()))?;
        unpack(unfinished)
    })
}

/// Makes a folder elsewhere and renames it: what is there is whole.
fn whole(directory: &Path, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let unfinished = directory.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&unfinished)
        .with_context(|| format!("cannot make {}", unfinished.display()))?;
    make(&unfinished)?;
    std::fs::rename(&unfinished, directory)
        .with_context(|| format!("cannot rename {}", unfinished.display()))
}

/// The package of the highest version among those the package lists name.
fn newest_small_kernel() -> anyhow::Result<Option<String>> {
    let listed = shell::command("apt-cache", &["pkgnames", "linux-image-"])
        .output()
        .context("cannot start `apt-cache`")?;
    let numbers = |package: &str| -> Vec<u64> {
        package
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    Ok(String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter(|package| package.ends_with("-cloud-amd64"))
        .filter(|package| package["linux-image-".len()..].starts_with(|c: char| c.is_ascii_digit()))
        // The names without a full version are those of empty packages.
        .filter(|package| numbers(package).len() > 3)
        .max_by_key(|package| numbers(package))
        .map(str::to_owned))
}

/// Fetches a package into `directory` and unpacks it there.
fn download(package: &str, directory: &Path) -> anyhow::Result<()> {
    let fetch = || {
        let mut command = shell::command("apt-get", &["download", "-qq", package]);
        command.current_dir(directory);
        shell::run(command)
    };
    if fetch().is_err() {
        // The package lists may never have been fetched on this machine.
        shell::run(shell::root_command("apt-get", &["update", "-qq"]))?;
        fetch()?;
    }
    unpack(directory)
}

/// Unpacks the packages that lie in `directory` there.
fn unpack(directory: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    let packages: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if packages.is_empty() {
        bail!("apt-get left no package in {}", directory.display());
    }
    for file in packages {
        let mut unpack = shell::command("dpkg-deb", &["-x"]);
        unpack.arg(&file).arg(directory);
        shell::run(unpack)?;
        std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
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
