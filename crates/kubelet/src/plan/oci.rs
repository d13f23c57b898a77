//! From a container's manifest to the OCI runtime's `config.json`
//! (OCI runtime specification 1.0).

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as k8s;
use serde_json::{Value, json};

use super::environment::Environment;
use crate::images::Config;

/// What containers may do unless they ask for more or less, as containerd and
/// Docker have it.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A file or folder of the node shown in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    /// `private`, `slave` or `shared`.
    pub(crate) propagation: &'static str,
}

/// Who the container's process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: Option<String>,
}

/// All that goes into a container's configuration beside its manifest.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) pod: &'a k8s::Pod,
    pub(crate) container: &'a k8s::Container,
    pub(crate) image: &'a Config,
    pub(crate) environment: &'a Environment,
    pub(crate) user: User,
    pub(crate) mounts: Vec<Mount>,
    /// The process that holds the pod's namespaces.
    pub(crate) pause: i32,
    /// What this node itself may do: nobody can be given more.
    pub(crate) available: &'a [String],
}

/// The command a container runs: the manifest's command and args over the
/// image's entrypoint and command, with variables expanded. A command without
/// args drops the image's args too.
///
/// # Errors
/// When neither names a command.
pub(crate) fn command(
    container: &k8s::Container,
    image: &Config,
    environment: &Environment,
) -> Result<Vec<String>, String> {
    let given = |list: &Option<Vec<String>>| {
        list.as_ref()
            .filter(|list| !list.is_empty())
            .map(|list| list.iter().map(|word| environment.expand(word)).collect())
    };
    let (command, args): (Option<Vec<String>>, Option<Vec<String>>) =
        (given(&container.command), given(&container.args));
    let words: Vec<String> = match (command, args) {
        (Some(command), args) => [command, args.unwrap_or_default()].concat(),
        (None, Some(args)) => [image.entrypoint.clone(), args].concat(),
        (None, None) => [image.entrypoint.clone(), image.cmd.clone()].concat(),
    };
    if words.is_empty() {
        return Err("no command specified: neither the container nor its image names one".into());
    }
    Ok(words)
}

/// The container's capabilities: the default ones, more, fewer, or all of the
/// node's for a privileged one.
pub(crate) fn capabilities(
    security: Option<&k8s::SecurityContext>,
    available: &[String],
) -> Vec<String> {
    if security.and_then(|s| s.privileged) == Some(true) {
        return available.to_vec();
    }
    let full = |name: &String| {
        let upper = name.to_uppercase();
        if upper.starts_with("CAP_") || upper == "ALL" {
            upper
        } else {
            format!("CAP_{upper}")
        }
    };
    let asked = security.and_then(|s| s.capabilities.as_ref());
    let list = |names: Option<&Vec<String>>| -> Vec<String> {
        names.into_iter().flatten().map(full).collect()
    };
    let add = list(asked.and_then(|c| c.add.as_ref()));
    let drop = list(asked.and_then(|c| c.drop.as_ref()));
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    available
        .iter()
        .filter(|name| {
            let default = DEFAULT_CAPABILITIES.contains(&name.as_str());
            let kept = (default && !all(&drop) || all(&add)) && !drop.contains(name);
            kept || add.contains(name)
        })
        .cloned()
        .collect()
}

/// The runtime's configuration of a container.
///
/// # Errors
/// When the manifest can't be run; in words for the container's status.
pub(crate) fn config(context: &Context<'_>) -> Result<Value, String> {
    let container = context.container;
    let security = container.security_context.as_ref();
    let spec = context.pod.spec.as_ref();
    let privileged = security.and_then(|s| s.privileged) == Some(true);
    let args = command(container, context.image, context.environment)?;
    let cwd = container
        .working_dir
        .clone()
        .filter(|dir| !dir.is_empty())
        .or_else(|| context.image.working_dir.clone().filter(|d| !d.is_empty()))
        .unwrap_or_else(|| "/".into());
    let capabilities = capabilities(security, context.available);
    // A process of another user keeps none unless a file gives it some.
    let held: &[String] = if context.user.uid == 0 {
        &capabilities
    } else {
        &[]
    };
    let no_new_privileges =
        !privileged && security.and_then(|s| s.allow_privilege_escalation) == Some(false);
    let read_only = security.and_then(|s| s.read_only_root_filesystem) == Some(true);

    let share_pid = spec.and_then(|s| s.host_pid) == Some(true);
    let namespace = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{}/ns/{file}", context.pause)});
    let mut namespaces = vec![
        json!({"type": "mount"}),
        namespace("network", "net"),
        namespace("ipc", "ipc"),
        namespace("uts", "uts"),
    ];
    if !share_pid {
        namespaces.push(json!({"type": "pid"}));
    }

    let mut linux = json!({ "namespaces": namespaces });
    if !privileged {
        linux["maskedPaths"] = json!([
            "/proc/asound",
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/timer_stats",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware"
        ]);
        linux["readonlyPaths"] = json!([
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger"
        ]);
    }

    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {
                "uid": context.user.uid,
                "gid": context.user.gid,
                "additionalGids": context.user.groups,
            },
            "args": args,
            "env": context.environment.pairs(),
            "cwd": cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": held,
                "permitted": held,
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": no_new_privileges,
        },
        "root": {"path": "rootfs", "readonly": read_only},
        "mounts": mounts(context, privileged),
        "linux": linux,
    }))
}

fn mounts(context: &Context<'_>, privileged: bool) -> Vec<Value> {
    let sys = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys]}),
    ];
    // A mount hides what was mounted below its target before: parents first.
    let mut own: Vec<&Mount> = context.mounts.iter().collect();
    own.sort_by_key(|mount| Path::new(&mount.target).components().count());
    for mount in own {
        let access = if mount.read_only { "ro" } else { "rw" };
        mounts.push(json!({
            "destination": mount.target,
            "type": "bind",
            "source": mount.source,
            "options": ["rbind", format!("r{}", mount.propagation), access],
        }));
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn container(value: Value) -> k8s::Container {
        let mut value = value;
        value["name"] = json!("c");
        serde_json::from_value(value).unwrap()
    }

    fn image() -> Config {
        Config {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            ..Config::default()
        }
    }

    #[rstest]
    #[case(json!({}), &["/entry", "default"])]
    #[case(json!({"args": ["$(X)"]}), &["/entry", "1"])]
    #[case(json!({"command": ["run"]}), &["run"])]
    #[case(json!({"command": ["run"], "args": ["a"]}), &["run", "a"])]
    fn command_and_args_override_the_images(#[case] value: Value, #[case] words: &[&str]) {
        let mut environment = Environment::default();
        environment.set("X", "1");
        assert_eq!(
            command(&container(value), &image(), &environment).unwrap(),
            words
        );
    }

    #[test]
    fn a_container_without_any_command_is_refused() {
        assert!(
            command(
                &container(json!({})),
                &Config::default(),
                &Environment::default()
            )
            .is_err()
        );
    }

    fn node() -> Vec<String> {
        DEFAULT_CAPABILITIES
            .iter()
            .chain(&["CAP_NET_ADMIN", "CAP_SYS_ADMIN"])
            .map(ToString::to_string)
            .collect()
    }

    #[rstest]
    #[case(json!({}), 14, false)]
    #[case(json!({"capabilities": {"add": ["NET_ADMIN"]}}), 15, true)]
    #[case(json!({"capabilities": {"drop": ["ALL"], "add": ["net_admin"]}}), 1, true)]
    #[case(json!({"capabilities": {"drop": ["KILL"]}}), 13, false)]
    #[case(json!({"privileged": true}), 16, true)]
    #[case(json!({"capabilities": {"add": ["SYS_RESOURCE"]}}), 14, false)]
    fn capabilities_are_added_and_dropped_within_the_nodes(
        #[case] security: Value,
        #[case] count: usize,
        #[case] net_admin: bool,
    ) {
        let security: k8s::SecurityContext = serde_json::from_value(security).unwrap();
        let got = capabilities(Some(&security), &node());
        assert_eq!(got.len(), count, "{got:?}");
        assert_eq!(got.contains(&"CAP_NET_ADMIN".to_owned()), net_admin);
    }

    #[test]
    fn containers_join_the_pods_namespaces_and_have_their_own_processes() {
        let pod: k8s::Pod =
            serde_json::from_value(json!({"metadata": {}, "spec": {"containers": []}})).unwrap();
        let environment = Environment::default();
        let context = Context {
            pod: &pod,
            container: &container(json!({"securityContext": {"readOnlyRootFilesystem": true}})),
            image: &image(),
            environment: &environment,
            user: User {
                uid: 7,
                ..User::default()
            },
            mounts: vec![
                Mount {
                    source: "/s/b".into(),
                    target: "/data/sub".into(),
                    read_only: true,
                    propagation: "private",
                },
                Mount {
                    source: "/s/a".into(),
                    target: "/data".into(),
                    read_only: false,
                    propagation: "private",
                },
            ],
            pause: 42,
            available: &node(),
        };
        let config = config(&context).unwrap();
        let namespaces = config["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.contains(&json!({"type": "network", "path": "/proc/42/ns/net"})));
        assert!(namespaces.contains(&json!({"type": "pid"})));
        assert_eq!(config["root"]["readonly"], true);
        assert_eq!(config["process"]["user"]["uid"], 7);
        assert_eq!(config["process"]["capabilities"]["effective"], json!([]));
        let mounts = config["mounts"].as_array().unwrap();
        let targets: Vec<&str> = mounts
            .iter()
            .filter_map(|mount| mount["destination"].as_str())
            .collect();
        assert_eq!(targets[5..], ["/data", "/data/sub"]);
    }
}
