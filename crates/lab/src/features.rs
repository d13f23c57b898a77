//! What a lab needs of the machine, tried rather than guessed, and said with
//! what to do.

use std::path::{Path, PathBuf};

use linux::link::{self, Bridge, VethEnd};
use linux::mount::{self, Upper};
use linux::namespace::NetworkNamespace;
use linux::nftables::Nftables;
use linux::process;

/// The OCI runtime.
const RUNTIME: &str = "crun";
/// podwire's CNI plugin.
const PLUGIN: &str = "podwire-cni";

/// What a machine offers to a lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// podwire's CNI plugin.
    pub(crate) plugin: PathBuf,
}

/// What is missing, one line each.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub(crate) struct Missing(pub(crate) Vec<String>);

/// Looks at the machine.
///
/// # Errors
/// Everything that is missing.
pub(crate) fn probe() -> Result<Machine, Missing> {
    if !rustix::process::geteuid().is_root() {
        return Err(Missing(vec![
            "a lab needs root, for namespaces and mounts; try again with sudo".into(),
        ]));
    }
    let mut missing = Vec::new();
    for kind in ["net", "mnt", "uts", "ipc", "pid"] {
        if !Path::new("/proc/self/ns").join(kind).exists() {
            missing.push(format!(
                "the kernel has no {kind} namespaces (CONFIG_NAMESPACES and below); use a \
                 distribution's kernel"
            ));
        }
    }
    match NetworkNamespace::create() {
        Ok(namespace) => network(&namespace, &mut missing),
        Err(error) => missing.push(format!(
            "no network namespace can be made: {error}; a lab needs the capability SYS_ADMIN, \
             which a container has only when it is privileged"
        )),
    }
    if let Err(problem) = overlay() {
        missing.push(format!(
            "no overlay can be mounted: {problem}; a lab needs the kernel's overlay file system \
             (CONFIG_OVERLAY_FS, modprobe overlay) and the capability SYS_ADMIN"
        ));
    }
    if find(RUNTIME, &search_path()).is_none() {
        missing.push(format!(
            "{RUNTIME} is not installed, the program that starts containers; apt-get install \
             {RUNTIME}"
        ));
    }
    let plugin = find(PLUGIN, &plugin_path());
    if plugin.is_none() {
        missing.push(format!(
            "{PLUGIN} is not there, podwire's CNI plugin; it belongs beside the podwire binary: \
             cargo build --bins, or set PODWIRE_CNI_PLUGIN to it"
        ));
    }
    match plugin {
        Some(plugin) if missing.is_empty() => Ok(Machine { plugin }),
        _ => Err(Missing(missing)),
    }
}

fn network(namespace: &NetworkNamespace, missing: &mut Vec<String>) {
    let mut lacks = |what: &str, option: &str, module: &str, problem: String| {
        missing.push(format!(
            "the kernel gives no {what}: {problem}; a lab needs it ({option}, modprobe {module}), \
             and the capability NET_ADMIN"
        ));
    };
    let links = namespace.run(|| {
        let mut socket = linux::netlink::Socket::open_route()?;
        let pair = link::add_veth(
            &VethEnd {
                name: "probe0",
                ..VethEnd::default()
            },
            None,
            &VethEnd {
                name: "probe1",
                ..VethEnd::default()
            },
        );
        let bridge = link::add_bridge(&Bridge {
            name: "probe2",
            ..Bridge::default()
        });
        Ok::<_, linux::netlink::Error>((socket.execute(&pair), socket.execute(&bridge)))
    });
    match links {
        Ok(Ok((pair, bridge))) => {
            if let Err(error) = pair {
                lacks("veth pairs", "CONFIG_VETH", "veth", error.to_string());
            }
            if let Err(error) = bridge {
                lacks("bridges", "CONFIG_BRIDGE", "bridge", error.to_string());
            }
        }
        Ok(Err(error)) => lacks("route netlink", "CONFIG_NET", "none", error.to_string()),
        Err(error) => lacks(
            "namespaces to enter",
            "CONFIG_NET_NS",
            "none",
            error.to_string(),
        ),
    }
    let tables = namespace.run(|| Nftables::open().and_then(|mut socket| socket.generation()));
    let problem = match tables {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    lacks("nf_tables", "CONFIG_NF_TABLES", "nf_tables", problem);
}

/// Mounts an overlay on a tmpfs as nodes do, in a mount namespace that goes
/// with its thread.
fn overlay() -> Result<(), String> {
    let attempt = || -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        process::unshare_mounts().map_err(|error| text(&error))?;
        mount::make_private(Path::new("/")).map_err(|error| text(&error))?;
        // Any directory does: it is covered for this thread only.
        let base = Path::new("/tmp");
        mount::tmpfs(base, "mode=0700").map_err(|error| text(&error))?;
        let part = |name: &str| base.join(name);
        for name in ["lower", "upper", "work", "root"] {
            std::fs::create_dir(part(name)).map_err(|error| text(&error))?;
        }
        let upper = Upper {
            upper: &part("upper"),
            work: &part("work"),
        };
        mount::overlay(&[&part("lower")], Some(upper), &part("root")).map_err(|error| text(&error))
    };
    std::thread::scope(|scope| match scope.spawn(attempt).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// `PATH`, and where programs are on every Debian even when it says otherwise.
fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fixed = ["/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    std::env::split_paths(&path)
        .chain(fixed.map(PathBuf::from))
        .collect()
}

fn plugin_path() -> Vec<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|own| own.parent().map(Path::to_owned));
    let given = std::env::var_os("PODWIRE_CNI_PLUGIN").map(PathBuf::from);
    given
        .into_iter()
        .chain(beside)
        .chain(["/opt/cni/bin", "/usr/lib/podwire"].map(PathBuf::from))
        .collect()
}

/// The program in the first directory that has it; a path to the program
/// itself will do for a directory.
fn find(program: &str, path: &[PathBuf]) -> Option<PathBuf> {
    path.iter()
        .flat_map(|entry| [entry.join(program), entry.clone()])
        .find(|candidate| {
            candidate.file_name().is_some_and(|name| name == program) && candidate.is_file()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_a_directory_or_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("tool");
        assert_eq!(find("tool", &[folder.path().to_owned()]), None);
        std::fs::write(&program, "").unwrap();
        let found = Some(program.clone());
        assert_eq!(find("tool", &["/none".into(), folder.path().into()]), found);
        assert_eq!(find("tool", &[program]), found);
    }

    #[test]
    fn this_kernel_mounts_overlays_and_makes_links() {
        overlay().unwrap();
        let mut missing = Vec::new();
        network(&NetworkNamespace::create().unwrap(), &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }
}
