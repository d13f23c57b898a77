//! Giving addresses back.

use std::fs;
use std::io;
use std::path::Path;

use super::files::{entries, inode, names, read, unlink};
use super::{Attachment, Error, RELEASING, Releasing, Reservation, SUFFIX, Store};

impl Store {
    /// Gives back what an attachment holds, and returns it. Fine when it holds
    /// nothing.
    pub fn release(&self, attachment: &Attachment) -> Result<Option<Reservation>, Error> {
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(None);
        };
        let file = self.attachment_file(attachment);
        let found = read(&file)?;
        self.remove(&file, found.as_ref())?;
        Ok(found)
    }

    /// Ends an attachment's reservation without giving its addresses back yet:
    /// they stay held until [`Self::free`], and the attachment can reserve
    /// others at once. Returns what it held. Fine when it holds nothing.
    pub fn retire(&self, attachment: &Attachment) -> Result<Option<Reservation>, Error> {
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(None);
        };
        let file = self.attachment_file(attachment);
        let (Some(found), Some(own)) = (read(&file)?, inode(&file)?) else {
            // Damaged: nothing says what to wait for.
            self.remove(&file, None)?;
            return Ok(None);
        };
        let folder = self.directory.join(RELEASING);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Io {
                    action: "make the folder",
                    path: folder,
                    source: error,
                });
            }
            _ => {}
        }
        // The inode's number is no other file's as long as this one exists.
        let aside = folder.join(format!("{}.{own}{SUFFIX}", attachment.key()));
        fs::rename(&file, &aside).map_err(|source| Error::Io {
            action: "set aside",
            path: file,
            source,
        })?;
        Ok(Some(found))
    }

    /// What was retired and not freed yet, in no order.
    pub fn releasing(&self) -> Result<Vec<Releasing>, Error> {
        let mut found = Vec::new();
        for (file, _) in entries(&self.directory.join(RELEASING))? {
            let reservation = read(&file)?;
            found.push(Releasing { file, reservation });
        }
        Ok(found)
    }

    /// Whether something was retired and not freed yet, without reading what.
    pub fn is_releasing(&self) -> Result<bool, Error> {
        Ok(!names(&self.directory.join(RELEASING))?.is_empty())
    }

    /// Gives the addresses of retired reservations back. Fine when another was
    /// faster.
    pub fn free(&self, releasing: &[Releasing]) -> Result<(), Error> {
        if releasing.is_empty() {
            return Ok(());
        }
        let Some(_lock) = self.lock_if_present()? else {
            return Ok(());
        };
        for retired in releasing {
            self.remove(&retired.file, retired.reservation.as_ref())?;
        }
        Ok(())
    }

    /// Removes an attachment's file and those of its addresses. `known` is the
    /// file's content; a file that cannot be read is matched by its links.
    pub(super) fn remove(&self, file: &Path, known: Option<&Reservation>) -> Result<(), Error> {
        let Some(own) = inode(file)? else {
            return Ok(());
        };
        let candidates = match known {
            Some(reservation) => reservation.addresses.clone(),
            None => self.held()?.into_iter().collect(),
        };
        let mut gone = Vec::new();
        for address in candidates {
            if inode(&self.address_file(address))? == Some(own) {
                gone.push(address);
            }
        }
        if !gone.is_empty() {
            let mut released = self.released();
            released.retain(|address| !gone.contains(address));
            released.extend(&gone);
            // A full disk must not keep an address from being given back.
            let _ = self.write_released(&released);
        }
        for address in &gone {
            unlink(&self.address_file(*address))?;
        }
        unlink(file)
    }
}
