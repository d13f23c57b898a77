//! `podwire install` and `podwire uninstall`: the CNI plugin on a node.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use cni::configuration::AttachMode;
use cni::install::{self, ConfigList, Error};
use ipnet::IpNet;

use crate::output;

/// Install a part of podwire on this node
#[derive(Debug, Args)]
pub(crate) struct Install {
    #[command(subcommand)]
    part: InstallPart,
}

#[derive(Debug, Subcommand)]
enum InstallPart {
    /// The CNI plugin, for containerd, CRI-O and podman
    Cni(InstallCni),
}

#[derive(Debug, Args)]
struct InstallCni {
    /// Directory of the runtime's CNI plugins
    #[arg(long, value_name = "DIR")]
    dest: PathBuf,
    /// The plugin to install [default: podwire-cni beside this executable]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// Also write the config list, in this directory (usually /etc/cni/net.d). Where an agent
    /// runs, leave it to the agent, which writes it when the node is ready
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// How pods are attached
    #[arg(long, value_enum, requires = "conf_dir", default_value_t = Attach::Routed)]
    attach: Attach,
    /// Largest packet of pods in bytes [default: the kernel's]
    #[arg(long, requires = "conf_dir", value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65535))]
    mtu: Option<u32>,
    /// Range of pod addresses, one of each family at most [default: the node's own, which its
    /// agent knows]
    #[arg(long = "range", requires = "conf_dir", value_name = "CIDR")]
    ranges: Vec<IpNet>,
    /// Write the config list although another one sorts first
    #[arg(long, requires = "conf_dir")]
    force: bool,
    /// Also tell systemd-networkd and NetworkManager, where they are, to leave pods' interfaces
    /// alone: files below this directory (usually /etc)
    #[arg(long, value_name = "DIR")]
    host_etc: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Attach {
    /// To a bridge
    Bridge,
    /// Each by a link and a route of its own
    Routed,
}

/// Remove a part of podwire from this node
#[derive(Debug, Args)]
pub(crate) struct Uninstall {
    #[command(subcommand)]
    part: UninstallPart,
}

#[derive(Debug, Subcommand)]
enum UninstallPart {
    /// The CNI plugin: the config list first, so that no new pod comes
    Cni(UninstallCni),
}

#[derive(Debug, Args)]
struct UninstallCni {
    /// Directory of the runtime's CNI plugins
    #[arg(long, value_name = "DIR")]
    dest: PathBuf,
    /// Directory of the config list
    #[arg(long, value_name = "DIR")]
    conf_dir: Option<PathBuf>,
    /// Directory below which link managers were told (usually /etc)
    #[arg(long, value_name = "DIR")]
    host_etc: Option<PathBuf>,
}

/// Installs.
pub(crate) fn install(options: &Install) -> ExitCode {
    let InstallPart::Cni(cni) = &options.part;
    match install_cni(cni) {
        Ok(text) => output::print(text.as_bytes()),
        Err(error) => output::fail(&error, 1),
    }
}

/// Uninstalls.
pub(crate) fn uninstall(options: &Uninstall) -> ExitCode {
    let UninstallPart::Cni(cni) = &options.part;
    match uninstall_cni(cni) {
        Ok(text) => output::print(text.as_bytes()),
        Err(error) => output::fail(&error, 1),
    }
}

fn install_cni(options: &InstallCni) -> Result<String, Error> {
    let source = match &options.plugin {
        Some(path) => path.clone(),
        None => install::plugin_beside_this()?,
    };
    if let (Some(directory), false) = (&options.conf_dir, options.force) {
        install::refuse_foreign(directory)?;
    }
    let mut text = String::new();
    let installed = install::plugin(&source, &options.dest)?;
    tell(
        &mut text,
        "installed",
        &options.dest.join(install::PLUGIN),
        installed.is_some(),
    );
    if let Some(etc) = &options.host_etc {
        for path in install::drop_ins(etc)? {
            tell(&mut text, "wrote", &path, true);
        }
    }
    if let Some(directory) = &options.conf_dir {
        let list = ConfigList {
            attach: Some(match options.attach {
                Attach::Bridge => AttachMode::Bridge,
                Attach::Routed => AttachMode::Routed,
            }),
            proxy_arp: false,
            mtu: options.mtu,
            ranges: options.ranges.clone(),
        };
        let written = install::config_list(directory, &list.text())?;
        tell(
            &mut text,
            "wrote",
            &directory.join(install::CONFIG_LIST),
            written.is_some(),
        );
        for other in install::preferred_by_runtimes(directory) {
            let _ = writeln!(
                text,
                "warning: {} sorts first: runtimes use it instead until it is removed",
                other.display()
            );
        }
    }
    Ok(text)
}

fn uninstall_cni(options: &UninstallCni) -> Result<String, Error> {
    let mut text = String::new();
    let mut removed = Vec::new();
    if let Some(directory) = &options.conf_dir {
        removed.extend(install::remove_config_list(directory)?);
    }
    removed.extend(install::remove_plugin(&options.dest)?);
    if let Some(etc) = &options.host_etc {
        removed.extend(install::remove_drop_ins(etc)?);
    }
    for path in &removed {
        tell(&mut text, "removed", path, true);
    }
    if removed.is_empty() {
        text.push_str("nothing was installed there\n");
    }
    Ok(text)
}

fn tell(text: &mut String, what: &str, path: &Path, changed: bool) {
    let (what, note) = if changed {
        (what, "")
    } else {
        ("kept", ", which is the same")
    };
    let _ = writeln!(text, "{what} {}{note}", path.display());
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct InstallCommand {
        #[command(flatten)]
        options: Install,
    }

    #[derive(Parser)]
    struct UninstallCommand {
        #[command(flatten)]
        options: Uninstall,
    }

    fn run_install(words: &[&str]) -> Result<String, Error> {
        let words = ["podwire", "cni"].iter().chain(words);
        let InstallPart::Cni(cni) = InstallCommand::try_parse_from(words).unwrap().options.part;
        install_cni(&cni)
    }

    fn run_uninstall(words: &[&str]) -> String {
        let words = ["podwire", "cni"].iter().chain(words);
        let UninstallPart::Cni(cni) = UninstallCommand::try_parse_from(words)
            .unwrap()
            .options
            .part;
        uninstall_cni(&cni).unwrap()
    }

    #[test]
    fn a_node_is_made_ready_and_left_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (plugin, dest, conf, etc) =
            (path("podwire-cni"), path("bin"), path("net.d"), path("etc"));
        fs::write(&plugin, "plugin").unwrap();
        fs::create_dir_all(path("etc/systemd")).unwrap();
        let all = [
            "--plugin",
            &plugin,
            "--dest",
            &dest,
            "--conf-dir",
            &conf,
            "--host-etc",
            &etc,
            "--attach",
            "bridge",
            "--range",
            "10.1.0.0/24",
            "--range",
            "fd00:1::/64",
        ];
        let text = run_install(&all).unwrap();
        let last = text.lines().last().unwrap();
        assert!(
            last.ends_with("10-podwire.conflist"),
            "the list comes last: {text}"
        );
        let list = fs::read_to_string(path("net.d/10-podwire.conflist")).unwrap();
        let list: serde_json::Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["plugins"][0]["attach"], "bridge");
        assert_eq!(
            list["plugins"][0]["ipam"]["ranges"][1][0]["subnet"],
            "fd00:1::/64"
        );
        let again = run_install(&all).unwrap();
        assert!(
            again.lines().all(|line| line.starts_with("kept")),
            "{again}"
        );

        let words = ["--dest", &dest, "--conf-dir", &conf, "--host-etc", &etc];
        let text = run_uninstall(&words);
        assert!(
            text.lines()
                .next()
                .unwrap()
                .ends_with("10-podwire.conflist"),
            "{text}"
        );
        for folder in [&dest, &conf, &path("etc/systemd/network")] {
            assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{folder}");
        }
        assert_eq!(run_uninstall(&words), "nothing was installed there\n");
    }

    #[test]
    fn a_list_that_sorts_first_is_refused_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).display().to_string();
        let (plugin, dest, conf) = (path("podwire-cni"), path("bin"), path("net.d"));
        fs::write(&plugin, "plugin").unwrap();
        fs::create_dir(&conf).unwrap();
        fs::write(path("net.d/05-other.conflist"), "{}").unwrap();
        let mut words = vec!["--plugin", &*plugin, "--dest", &*dest, "--conf-dir", &*conf];
        let error = run_install(&words).unwrap_err().to_string();
        assert!(error.contains("05-other.conflist sorts before"), "{error}");
        assert!(!Path::new(&dest).exists());
        words.push("--force");
        let text = run_install(&words).unwrap();
        assert!(text.contains("warning: "), "{text}");
        // Of a folder that others use, only podwire's file goes.
        run_uninstall(&["--dest", &dest, "--conf-dir", &conf]);
        assert_eq!(fs::read_dir(&conf).unwrap().count(), 1);
    }
}
