use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1 as k8s;
use kube::api::{Api, ListParams};

use super::worker::{Delays, Worker};
use crate::plan::environment::{Environment, Sources};
use crate::plan::{oci, quantity};
use crate::{disk, paths};

/// Files of a volume by their paths in it, with their modes.
pub(super) type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// The folder of a volume.
pub(super) fn volume_dir(uid: &str, name: &str) -> PathBuf {
    paths::pod(uid).join("volumes").join(name)
}

impl Worker {
    /// Makes all that has to be there before the pod's sandbox; tries again
    /// until it is.
    pub(super) async fn prepare(&self) {
        let mut delays = Delays::new(Duration::from_millis(250), Duration::from_secs(10));
        loop {
            let reason = match self.try_prepare().await {
                Ok(()) => return,
                Err(reason) => reason,
            };
            self.node
                .recorder
                .warning(self.about(), "FailedMount", reason);
            delays.wait().await;
        }
    }

    async fn try_prepare(&self) -> Result<(), String> {
        let pod = self.pod();
        let Some(spec) = &pod.spec else { return Ok(()) };
        let dir = paths::pod(&self.uid);
        for part in ["volumes", "messages"] {
            make_dir(&dir.join(part))?;
        }
        let shm = dir.join("shm");
        if !shm.exists() {
            make_dir(&shm)?;
            linux::mount::tmpfs(&shm, "mode=1777,size=64m").map_err(|error| error.to_string())?;
        }
        let group = spec.security_context.as_ref().and_then(|s| s.fs_group);
        for volume in spec.volumes.iter().flatten() {
            self.prepare_volume(&pod, volume, group)
                .await
                .map_err(|reason| {
                    format!(
                        "MountVolume.SetUp failed for volume \"{}\": {reason}",
                        volume.name
                    )
                })?;
        }
        Ok(())
    }

    async fn prepare_volume(
        &self,
        pod: &k8s::Pod,
        volume: &k8s::Volume,
        group: Option<i64>,
    ) -> Result<(), String> {
        let dir = volume_dir(&self.uid, &volume.name);
        if let Some(empty) = &volume.empty_dir {
            if dir.exists() {
                return Ok(());
            }
            make_dir(&dir)?;
            if empty.medium.as_deref() == Some("Memory") {
                let size = empty
                    .size_limit
                    .as_ref()
                    .and_then(quantity::milli)
                    .map(|milli| format!(",size={}", milli / 1000))
                    .unwrap_or_default();
                linux::mount::tmpfs(&dir, &format!("mode=0777{size}"))
                    .map_err(|error| error.to_string())?;
            }
            return open_to_all(&dir, group);
        }
        if let Some(host) = &volume.host_path {
            return check_host_path(Path::new(&host.path), host.type_.as_deref().unwrap_or(""));
        }
        match self.volume_files(pod, volume).await? {
            Some(files) => {
                make_dir(&dir)?;
                write_files(&dir, &files, group)
            }
            None => Err("volumes of this kind are not supported by podwire's kubelet; it has emptyDir, hostPath, configMap, secret, downwardAPI and projected".into()),
        }
    }

    /// The files of a volume made of API objects; none for other kinds.
    pub(super) async fn volume_files(
        &self,
        pod: &k8s::Pod,
        volume: &k8s::Volume,
    ) -> Result<Option<Files>, String> {
        let mut files = Files::new();
        if let Some(source) = &volume.config_map {
            let mode = source.default_mode.unwrap_or(0o644);
            self.config_map_files(
                &source.name,
                source.items.as_deref(),
                source.optional,
                mode,
                &mut files,
            )
            .await?;
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let mode = source.default_mode.unwrap_or(0o644);
            self.secret_files(
                name,
                source.items.as_deref(),
                source.optional,
                mode,
                &mut files,
            )
            .await?;
        } else if let Some(source) = &volume.downward_api {
            let mode = source.default_mode.unwrap_or(0o644);
            self.downward_files(pod, source.items.as_deref(), mode, &mut files)?;
        } else if let Some(source) = &volume.projected {
            let mode = source.default_mode.unwrap_or(0o644);
            for part in source.sources.iter().flatten() {
                if let Some(map) = &part.config_map {
                    self.config_map_files(
                        &map.name,
                        map.items.as_deref(),
                        map.optional,
                        mode,
                        &mut files,
                    )
                    .await?;
                }
                if let Some(secret) = &part.secret {
                    self.secret_files(
                        &secret.name,
                        secret.items.as_deref(),
                        secret.optional,
                        mode,
                        &mut files,
                    )
                    .await?;
                }
                if let Some(downward) = &part.downward_api {
                    self.downward_files(pod, downward.items.as_deref(), mode, &mut files)?;
                }
            }
        } else {
            return Ok(None);
        }
        Ok(Some(files))
    }

    async fn config_map_files(
        &self,
        name: &str,
        items: Option<&[k8s::KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
        files: &mut Files,
    ) -> Result<(), String> {
        let Some(map) = self.config_map(name).await? else {
            return missing("configmap", name, optional);
        };
        let mut content: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (key, value) in map.data.into_iter().flatten() {
            content.insert(key, value.into_bytes());
        }
        for (key, value) in map.binary_data.into_iter().flatten() {
            content.insert(key, value.0);
        }
        select("configmap", name, content, items, optional, mode, files)
    }

    async fn secret_files(
        &self,
        name: &str,
        items: Option<&[k8s::KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
        files: &mut Files,
    ) -> Result<(), String> {
        let Some(secret) = self.secret(name).await? else {
            return missing("secret", name, optional);
        };
        let content = secret
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0))
            .collect();
        select("secret", name, content, items, optional, mode, files)
    }

    fn downward_files(
        &self,
        pod: &k8s::Pod,
        items: Option<&[k8s::DownwardAPIVolumeFile]>,
        mode: i32,
        files: &mut Files,
    ) -> Result<(), String> {
        for item in items.unwrap_or_default() {
            let text = self.with_downward(pod, |downward| {
                match (&item.field_ref, &item.resource_field_ref) {
                    (Some(field), _) => downward.field(&field.field_path),
                    (None, Some(resource)) => downward.resource(resource, None),
                    (None, None) => Err(format!("item {} names no field", item.path)),
                }
            })?;
            files.insert(
                inside(&item.path)?,
                (text.into_bytes(), bits(item.mode.unwrap_or(mode))),
            );
        }
        Ok(())
    }

    async fn config_map(&self, name: &str) -> Result<Option<k8s::ConfigMap>, String> {
        let namespace = self.record.borrow().namespace.clone();
        let api: Api<k8s::ConfigMap> = Api::namespaced(self.node.client.clone(), &namespace);
        api.get_opt(name)
            .await
            .map_err(|error| format!("getting configmap \"{name}\": {error}"))
    }

    pub(super) async fn secret(&self, name: &str) -> Result<Option<k8s::Secret>, String> {
        let namespace = self.record.borrow().namespace.clone();
        let api: Api<k8s::Secret> = Api::namespaced(self.node.client.clone(), &namespace);
        api.get_opt(name)
            .await
            .map_err(|error| format!("getting secret \"{name}\": {error}"))
    }

    /// The Services a container is told about: those of its namespace unless it
    /// wants none, and the API server's in any case.
    pub(super) async fn services(&self, spec: &k8s::PodSpec) -> Result<Vec<k8s::Service>, String> {
        let namespace = self.record.borrow().namespace.clone();
        let get =
            |error: kube::Error| format!("getting the services of the pod's namespace: {error}");
        let mut services = Vec::new();
        if spec.enable_service_links != Some(false) {
            let api: Api<k8s::Service> = Api::namespaced(self.node.client.clone(), &namespace);
            let any = ListParams::default().match_any();
            services = api.list(&any).await.map_err(get)?.items;
        }
        let known = services
            .iter()
            .any(|service| service.metadata.name.as_deref() == Some("kubernetes"));
        if !(known && namespace == "default") {
            let api: Api<k8s::Service> = Api::namespaced(self.node.client.clone(), "default");
            if let Some(service) = api.get_opt("kubernetes").await.map_err(get)? {
                services.insert(0, service);
            }
        }
        Ok(services)
    }

    /// The ConfigMaps and Secrets a container's variables come from.
    pub(super) async fn sources(&self, container: &k8s::Container) -> Result<Sources, String> {
        let mut maps: Vec<&str> = Vec::new();
        let mut secrets: Vec<&str> = Vec::new();
        for from in container.env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|r| r.name.as_str()));
            secrets.extend(from.secret_ref.iter().map(|r| r.name.as_str()));
        }
        for from in container
            .env
            .iter()
            .flatten()
            .filter_map(|variable| variable.value_from.as_ref())
        {
            maps.extend(from.config_map_key_ref.iter().map(|r| r.name.as_str()));
            secrets.extend(from.secret_key_ref.iter().map(|r| r.name.as_str()));
        }
        let mut sources = Sources::default();
        for name in maps {
            if !sources.config_maps.contains_key(name)
                && let Some(map) = self.config_map(name).await?
            {
                sources.config_maps.insert(name.into(), map);
            }
        }
        for name in secrets {
            if !sources.secrets.contains_key(name)
                && let Some(secret) = self.secret(name).await?
            {
                sources.secrets.insert(name.into(), secret);
            }
        }
        Ok(sources)
    }

    /// What of the node is shown in a container: its volumes, the pod's own
    /// files, the file for its last words.
    pub(super) fn mounts(
        &self,
        pod: &k8s::Pod,
        container: &k8s::Container,
        variables: &Environment,
        attempt: u32,
    ) -> Result<Vec<oci::Mount>, String> {
        let dir = paths::pod(&self.uid);
        let own = |source: PathBuf, target: &str| oci::Mount {
            source,
            target: target.into(),
            read_only: false,
            propagation: "private",
        };
        let mut mounts = Vec::new();
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref());
        for mount in container.volume_mounts.iter().flatten() {
            let volume = volumes
                .unwrap_or_default()
                .iter()
                .find(|volume| volume.name == mount.name)
                .ok_or_else(|| format!("volume \"{}\" is not one of the pod's", mount.name))?;
            let root = match &volume.host_path {
                Some(host) => PathBuf::from(&host.path),
                None => volume_dir(&self.uid, &volume.name),
            };
            let sub = match (&mount.sub_path, &mount.sub_path_expr) {
                (_, Some(expression)) => variables.expand(expression),
                (Some(path), None) => path.clone(),
                (None, None) => String::new(),
            };
            let source = if sub.is_empty() {
                root
            } else {
                sub_path(&root, &sub)?
            };
            // Files of API objects are the kubelet's to change.
            let kept = volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.downward_api.is_some()
                || volume.projected.is_some();
            mounts.push(oci::Mount {
                source,
                target: absolute(&mount.mount_path),
                read_only: kept || mount.read_only == Some(true),
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => "slave",
                    Some("Bidirectional") => "shared",
                    _ => "private",
                },
            });
        }
        let taken = |mounts: &[oci::Mount], target: &str| mounts.iter().any(|m| m.target == target);
        for (file, target) in [
            ("etc-hosts", "/etc/hosts"),
            ("hostname", "/etc/hostname"),
            ("resolv.conf", "/etc/resolv.conf"),
            ("shm", "/dev/shm"),
        ] {
            if !taken(&mounts, target) {
                mounts.push(own(dir.join(file), target));
            }
        }
        let target = container
            .termination_message_path
            .as_deref()
            .unwrap_or("/dev/termination-log");
        if !target.is_empty() && !taken(&mounts, target) {
            let path = dir
                .join("messages")
                .join(format!("{}-{attempt}", container.name));
            std::fs::write(&path, "")
                .and_then(|()| std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)))
                .map_err(|error| format!("making {}: {error}", path.display()))?;
            mounts.push(own(path, target));
        }
        Ok(mounts)
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.into()
    } else {
        format!("/{path}")
    }
}

fn make_dir(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|error| format!("making {}: {error}", path.display()))
}

fn missing(kind: &str, name: &str, optional: Option<bool>) -> Result<(), String> {
    if optional == Some(true) {
        Ok(())
    } else {
        Err(format!("{kind} \"{name}\" not found"))
    }
}

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0o644) & 0o777
}

/// The keys a volume shows, under the paths its items give them.
fn select(
    kind: &str,
    name: &str,
    mut content: BTreeMap<String, Vec<u8>>,
    items: Option<&[k8s::KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    files: &mut Files,
) -> Result<(), String> {
    match items {
        None => {
            for (key, value) in content {
                files.insert(inside(&key)?, (value, bits(mode)));
            }
        }
        Some(items) => {
            for item in items {
                match content.remove(&item.key) {
                    Some(value) => {
                        let mode = bits(item.mode.unwrap_or(mode));
                        files.insert(inside(&item.path)?, (value, mode));
                    }
                    None if optional == Some(true) => {}
                    None => {
                        return Err(format!(
                            "{kind} \"{name}\" references non-existent key: {}",
                            item.key
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

/// A path that stays inside its volume.
fn inside(path: &str) -> Result<String, String> {
    let good = !path.is_empty()
        && Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
    if good {
        Ok(path.into())
    } else {
        Err(format!("path \"{path}\" leads out of the volume"))
    }
}

/// Writes a volume's files so that they change all at once: they lie in a
/// folder of their own to which `..data` points, as Kubernetes lays them out.
pub(super) fn write_files(dir: &Path, files: &Files, group: Option<i64>) -> Result<(), String> {
    let fail = |path: &Path, error: io::Error| format!("writing {}: {error}", path.display());
    let current = std::fs::read_link(dir.join("..data")).ok();
    if let Some(current) = &current
        && holds(&dir.join(current), files)
    {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = dir.join(format!("..{stamp}"));
    for (name, (content, mode)) in files {
        let path = fresh.join(name);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        std::fs::write(&path, content).map_err(|error| fail(&path, error))?;
        // The group reads what the owner reads.
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode))
            .and_then(|()| chown_group(&path, group))
            .map_err(|error| fail(&path, error))?;
    }
    make_dir(&fresh)?;
    let link = dir.join("..data_tmp");
    let data = dir.join("..data");
    disk::remove_file(&link)
        .and_then(|()| symlink(format!("..{stamp}"), &link))
        .and_then(|()| std::fs::rename(&link, &data))
        .map_err(|error| fail(&data, error))?;
    // What users see: links through ..data, by the first part of each path.
    let shown: std::collections::BTreeSet<&str> = files
        .keys()
        .filter_map(|name| name.split('/').next())
        .collect();
    for name in &shown {
        let link = dir.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new("..data").join(name), &link).map_err(|error| fail(&link, error))?;
        }
    }
    let entries = dir.read_dir().map_err(|error| fail(dir, error))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !shown.contains(name.as_ref()) {
            disk::remove_file(&entry.path()).map_err(|error| fail(&entry.path(), error))?;
        }
    }
    if let Some(current) = current {
        let old = dir.join(current);
        disk::remove_dir(&old).map_err(|error| fail(&old, error))?;
    }
    Ok(())
}

/// Whether a folder holds just these files with this content.
fn holds(dir: &Path, files: &Files) -> bool {
    fn count(dir: &Path) -> usize {
        dir.read_dir()
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| {
                if entry.path().is_dir() {
                    count(&entry.path())
                } else {
                    1
                }
            })
            .sum()
    }
    count(dir) == files.len()
        && files
            .iter()
            .all(|(name, (content, _))| std::fs::read(dir.join(name)).is_ok_and(|c| c == *content))
}

fn chown_group(path: &Path, group: Option<i64>) -> io::Result<()> {
    match group.and_then(|group| u32::try_from(group).ok()) {
        Some(group) => std::os::unix::fs::chown(path, None, Some(group)),
        None => Ok(()),
    }
}

/// An emptyDir is everybody's in the pod; with a group, its files are the
/// group's.
fn open_to_all(dir: &Path, group: Option<i64>) -> Result<(), String> {
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    chown_group(dir, group)
        .and_then(|()| std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)))
        .map_err(|error| format!("opening {}: {error}", dir.display()))
}

/// Sees that a hostPath is what its type says, or makes it so.
fn check_host_path(path: &Path, kind: &str) -> Result<(), String> {
    let found = std::fs::metadata(path).ok().map(|meta| meta.file_type());
    let refuse = |what: &str| {
        Err(format!(
            "hostPath type check failed: {} is not a {what}",
            path.display()
        ))
    };
    match kind {
        "DirectoryOrCreate" if found.is_none() => make_dir(path),
        "FileOrCreate" if found.is_none() => std::fs::File::create(path)
            .map(drop)
            .map_err(|error| format!("making {}: {error}", path.display())),
        "Directory" | "DirectoryOrCreate" if !found.is_some_and(|f| f.is_dir()) => {
            refuse("directory")
        }
        "File" | "FileOrCreate" if !found.is_some_and(|f| f.is_file()) => refuse("file"),
        "Socket" if !found.is_some_and(|f| f.is_socket()) => refuse("socket file"),
        "CharDevice" if !found.is_some_and(|f| f.is_char_device()) => refuse("character device"),
        "BlockDevice" if !found.is_some_and(|f| f.is_block_device()) => refuse("block device"),
        // Without a type nothing is checked; what is missing becomes a folder.
        "" if found.is_none() => make_dir(path),
        _ => Ok(()),
    }
}

/// A folder or file within a volume, made when it is missing, never outside.
fn sub_path(root: &Path, sub: &str) -> Result<PathBuf, String> {
    let sub = inside(sub)?;
    let path = root.join(&sub);
    if !path.exists() {
        make_dir(&path)?;
    }
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| format!("resolving {}: {error}", path.display()))
    };
    let (resolved, root) = (real(&path)?, real(root)?);
    if resolved.starts_with(&root) {
        Ok(resolved)
    } else {
        Err(format!("subPath \"{sub}\" leads out of the volume"))
    }
}

/// Takes the mounts below a pod's folder away, so that it can be removed.
pub(super) fn remove(uid: &str) -> io::Result<()> {
    let dir = paths::pod(uid);
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let mut targets: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(|target| PathBuf::from(target.replace("\\040", " ")))
        .filter(|target| target.starts_with(&dir))
        .collect();
    targets.sort();
    for target in targets.iter().rev() {
        linux::mount::unmount(target, true).map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter()
            .map(|(name, text)| ((*name).to_owned(), (text.as_bytes().to_vec(), 0o600)))
            .collect()
    }

    #[test]
    fn files_change_all_at_once_and_stale_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write_files(dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        let first = std::fs::read_link(dir.join("..data")).unwrap();
        write_files(dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(std::fs::read_link(dir.join("..data")).unwrap(), first);
        write_files(dir, &files(&[("a", "3")]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(std::fs::symlink_metadata(dir.join("sub")).is_err());
        assert!(!dir.join(first).exists());
        let mode = std::fs::metadata(dir.join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn paths_stay_inside_their_volume() {
        assert!(inside("a/b").is_ok());
        for path in ["../a", "/a", "a/../../b", ""] {
            assert!(inside(path).is_err(), "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        symlink("/etc", dir.path().join("link")).unwrap();
        assert!(sub_path(dir.path(), "link").is_err());
        assert!(sub_path(dir.path(), "made").unwrap().is_dir());
    }

    #[test]
    fn host_paths_are_checked_by_type() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        assert!(check_host_path(&file, "File").is_err());
        check_host_path(&file, "FileOrCreate").unwrap();
        assert!(check_host_path(&file, "Directory").is_err());
        assert!(check_host_path(&dir.path().join("d"), "DirectoryOrCreate").is_ok());
        assert!(check_host_path(&dir.path().join("s"), "Socket").is_err());
    }
}
