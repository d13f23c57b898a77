//! Test support: a kernel that has what this machine's kernel lacks.
//!
//! A test names the [`Feature`]s its cases need. Where the running kernel has
//! them all, the cases run here; otherwise a small virtual machine boots a
//! Debian kernel (QEMU by software emulation, no KVM needed) from an image made
//! on the spot, which holds the very same test binary, and runs them there. See
//! the crate's README for how to write such a test.
//!
//! Sources: `Documentation/arch/x86/boot.rst` (where the kernel is inside
//! `vmlinuz`), `Documentation/driver-api/early-userspace/buffer-format.rst`
//! (the archive the kernel boots from).

mod archive;
mod error;
mod feature;
mod guest;
mod image;
mod kernel;
mod machine;
mod report;

pub use error::Error;
pub use feature::Feature;
pub use guest::{Guest, in_guest};
pub use report::{Case, Outcome, Place, Report};
