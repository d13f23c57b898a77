//! Shaping of a pod's traffic.

use ipam::Attachment;

/// Name of the device that queues what a pod sends: `pwi` and 11 hexadecimal
/// digits of the same hash as the cable's.
pub fn interface(attachment: &Attachment) -> String {
    format!("pwi{}", &attachment.key()[..11])
}
