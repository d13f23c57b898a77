//! Pulling images from another network than the kubelet's own: that of the
//! machine, where the node is closed off from every registry.

use std::path::{Path, PathBuf};

use linux::mount;
use linux::namespace::NetworkNamespace;
use tokio::sync::oneshot;

use super::{Credentials, Error, Image, Reference, Store};

/// Files that name servers, and their places below `/etc` and below
/// `/etc/netns/NAME`, as ip-netns(8) has it.
const RESOLVER_FILES: [&str; 2] = ["resolv.conf", "hosts"];

/// A network namespace in which registries are asked.
///
/// With files of its own in `/etc/netns/NAME`, where NAME is the last part of
/// the namespace's path, names are resolved by these, as ip-netns(8) has it.
#[derive(Debug, Clone)]
pub struct Network {
    namespace: NetworkNamespace,
    resolver: PathBuf,
}

impl Network {
    /// Opens the network namespace at this path, a bind mount or
    /// `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let namespace = NetworkNamespace::open(path).map_err(network)?;
        let resolver = Path::new("/etc/netns").join(path.file_name().unwrap_or_default());
        Ok(Self {
            namespace,
            resolver,
        })
    }

    /// Moves the calling thread there, for good.
    fn enter(&self) -> Result<(), Error> {
        self.namespace.enter().map_err(network)?;
        let own = |name: &&str| self.resolver.join(name).exists();
        let files: Vec<&str> = RESOLVER_FILES.into_iter().filter(own).collect();
        if files.is_empty() {
            return Ok(());
        }
        // Only this thread is to see them.
        linux::process::unshare_mounts().map_err(network)?;
        mount::make_private(Path::new("/")).map_err(network)?;
        for name in files {
            let target = Path::new("/etc").join(name);
            mount::bind(&self.resolver.join(name), &target).map_err(network)?;
        }
        Ok(())
    }

    /// Pulls an image from there into the store. When nobody waits for it any
    /// more, it is given up.
    ///
    /// # Errors
    /// As of [`Store::pull`], or when the network can't be entered.
    pub async fn pull(
        &self,
        store: &Store,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Image, Error> {
        let (mut answer, pulled) = oneshot::channel();
        let (network, store) = (self.clone(), store.clone());
        let (reference, credentials) = (reference.clone(), credentials.cloned());
        let work = move || {
            let pull = || -> Result<_, Error> {
                network.enter()?;
                // Its threads, those that resolve names too, start from here.
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(self::network)
            };
            let result = match pull() {
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        result = store.pull(&reference, credentials.as_ref()) => Some(result),
                        () = answer.closed() => None,
                    }
                }),
                Err(error) => Some(Err(error)),
            };
            if let Some(result) = result {
                // Who asked may have gone this moment.
                let _ = answer.send(result);
            }
        };
        std::thread::Builder::new()
            .name("pull".into())
            .spawn(work)
            .map_err(self::network)?;
        pulled
            .await
            .unwrap_or_else(|_| Err(self::network("the thread that pulls has ended")))
    }
}

fn network(reason: impl ToString) -> Error {
    Error::Network(reason.to_string())
}
