use std::io::Read;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as k8s;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::plan::oci::User;

/// Who a container's process runs as: runAsUser and runAsGroup of container or
/// pod, else what the image says, by the image's own /etc/passwd and /etc/group.
///
/// # Errors
/// When a named user is not in the image, or the container must not be root's.
pub(crate) fn resolve(
    pod: &k8s::PodSpec,
    container: &k8s::Container,
    image_user: Option<&str>,
    layers: &[PathBuf],
) -> Result<User, String> {
    let passwd = read(layers, "etc/passwd");
    let group = read(layers, "etc/group");
    user(pod, container, image_user, &passwd, &group)
}

fn user(
    pod: &k8s::PodSpec,
    container: &k8s::Container,
    image_user: Option<&str>,
    passwd: &str,
    group: &str,
) -> Result<User, String> {
    let own = container.security_context.as_ref();
    let shared = pod.security_context.as_ref();
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| format!("{value} is not the number of a user or group"))
    };
    let (image_user, image_group) = match image_user.unwrap_or_default().split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image_user.unwrap_or_default(), None),
    };
    let entry = |key: &str, column: usize| {
        passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.get(column) == Some(&key))
    };
    let asked = own
        .and_then(|s| s.run_as_user)
        .or_else(|| shared.and_then(|s| s.run_as_user));
    let (uid, found) = match asked {
        Some(uid) => (number(uid)?, entry(&uid.to_string(), 2)),
        None if image_user.is_empty() => (0, entry("0", 2)),
        None => match image_user.parse() {
            Ok(uid) => (uid, entry(image_user, 2)),
            Err(_) => {
                let found = entry(image_user, 0).ok_or_else(|| {
                    format!("the image's user \"{image_user}\" is not in its /etc/passwd")
                })?;
                let uid = found.get(2).and_then(|uid| uid.parse().ok());
                (
                    uid.ok_or_else(|| {
                        format!("the image's /etc/passwd has no number for \"{image_user}\"")
                    })?,
                    Some(found),
                )
            }
        },
    };
    let non_root = own
        .and_then(|s| s.run_as_non_root)
        .or_else(|| shared.and_then(|s| s.run_as_non_root));
    if uid == 0 && non_root == Some(true) {
        return Err("container has runAsNonRoot and image will run as root".into());
    }
    let asked_group = own
        .and_then(|s| s.run_as_group)
        .or_else(|| shared.and_then(|s| s.run_as_group));
    let gid = match (asked_group, image_group) {
        (Some(gid), _) => number(gid)?,
        (None, Some(name)) if asked.is_none() => match name.parse() {
            Ok(gid) => gid,
            Err(_) => group
                .lines()
                .map(|line| line.split(':').collect::<Vec<_>>())
                .find(|fields| fields.first() == Some(&name))
                .and_then(|fields| fields.get(2)?.parse().ok())
                .ok_or_else(|| format!("the image's group \"{name}\" is not in its /etc/group"))?,
        },
        _ => found
            .as_ref()
            .and_then(|fields| fields.get(3)?.parse().ok())
            .unwrap_or(0),
    };
    let name = found.as_ref().and_then(|fields| fields.first().copied());
    let mut groups: Vec<u32> = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let member = fields.get(3)?.split(',').any(|m| Some(m) == name);
            if member {
                fields.get(2)?.parse().ok()
            } else {
                None
            }
        })
        .collect();
    let more = shared.into_iter().flat_map(|s| {
        s.fs_group
            .into_iter()
            .chain(s.supplemental_groups.iter().flatten().copied())
    });
    for gid in more {
        groups.push(number(gid)?);
    }
    groups.retain(|group| *group != gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(User {
        uid,
        gid,
        groups,
        home: found.and_then(|fields| fields.get(5).map(ToString::to_string)),
    })
}

/// A small file of an image, from the topmost layer that has it; links are
/// followed within that layer only.
fn read(layers: &[PathBuf], path: &str) -> String {
    layers
        .iter()
        .find_map(|layer| read_in(layer, path))
        .unwrap_or_default()
}

fn read_in(layer: &Path, path: &str) -> Option<String> {
    let root = std::fs::File::open(layer).ok()?;
    let file = openat2(
        &root,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .ok()?;
    let mut text = String::new();
    std::fs::File::from(file)
        .take(1024 * 1024)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\n";

    #[rstest]
    #[case::image_says_nothing(json!({}), json!({}), None, (0, 0, vec![]))]
    #[case::image_names_a_user(json!({}), json!({}), Some("web"), (33, 34, vec![50]))]
    #[case::image_gives_numbers(json!({}), json!({}), Some("1000:1001"), (1000, 1001, vec![]))]
    #[case::image_names_a_group(json!({}), json!({}), Some("1000:logs"), (1000, 50, vec![]))]
    #[case::manifest_wins(json!({"runAsUser": 5}), json!({"runAsGroup": 6}), Some("web"), (5, 6, vec![]))]
    #[case::containers_own_wins(json!({"runAsUser": 5}), json!({"runAsUser": 33}), None, (33, 34, vec![50]))]
    #[case::fs_group_is_one_more(json!({"fsGroup": 9, "supplementalGroups": [8]}), json!({}), None, (0, 0, vec![8, 9]))]
    fn user_and_groups_follow_manifest_then_image(
        #[case] pod: Value,
        #[case] container: Value,
        #[case] image: Option<&str>,
        #[case] expected: (u32, u32, Vec<u32>),
    ) {
        let pod: k8s::PodSpec =
            serde_json::from_value(json!({"securityContext": pod, "containers": []})).unwrap();
        let container: k8s::Container =
            serde_json::from_value(json!({"name": "c", "securityContext": container})).unwrap();
        let user = user(&pod, &container, image, PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), expected);
    }

    #[test]
    fn unknown_names_and_root_against_the_manifests_will_are_refused() {
        let pod: k8s::PodSpec = serde_json::from_value(
            json!({"securityContext": {"runAsNonRoot": true}, "containers": []}),
        )
        .unwrap();
        let container = k8s::Container::default();
        assert!(user(&pod, &container, None, PASSWD, GROUP).is_err());
        assert!(user(&pod, &container, Some("ghost"), PASSWD, GROUP).is_err());
        assert!(user(&pod, &container, Some("web"), PASSWD, GROUP).is_ok());
    }
}
