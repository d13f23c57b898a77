//! The node's resolv.conf, read again when it changes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use super::{Dns, DnsOptions};

/// Follows the file until the event loop ends.
pub(super) async fn follow(dns: Arc<Dns>, options: DnsOptions) {
    if let Err(error) = try_follow(&dns, &options).await {
        tracing::warn!(
            "cannot watch {}: {error}; changes of it count when the agent is started again",
            options.dns_resolv_conf.display()
        );
    }
}

async fn try_follow(dns: &Dns, options: &DnsOptions) -> io::Result<()> {
    // The folder: files are replaced as a whole, and links lead elsewhere then.
    let file = &options.dns_resolv_conf;
    let folder = file.parent().unwrap_or(Path::new("/"));
    #[allow(
        deprecated,
        reason = "its replacement is unsafe; the descriptor is owned and stays"
    )]
    let notices = AsyncFd::new(watch(folder)?)?;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    loop {
        // What changed between the first reading and the watch counts too.
        let node = options.resolv_conf();
        dns.set_node_search(node.search);
        if options.dns_upstream.is_empty() {
            dns.set_upstreams(node.servers);
        }
        let mut ready = notices.readable().await?;
        // Which file it was does not matter: the servers are compared.
        while let Ok(1..) =
            rustix::io::read(ready.get_inner(), &mut buffer).map(|(read, _)| read.len())
        {}
        ready.clear_ready();
    }
}

fn watch(folder: &Path) -> io::Result<OwnedFd> {
    let notices = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    let changes = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::CREATE;
    inotify::add_watch(&notices, folder, changes)?;
    Ok(notices)
}
