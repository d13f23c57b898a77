//! bandwidth
use ipam::Attachment;

/// Name of the IFB device
pub fn interface(attachment: &Attachment) -> String {
    format!("pwi{}", &attachment.key()[..11])
}
