//! The objects on disk: one redb table of JSON documents and the counters.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use super::StoreError;

/// Objects, keyed by `collection NUL namespace NUL name`.
const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
/// Counters of the whole store.
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const REVISION: &str = "resourceVersion";

/// The database file without waits for the disk.
///
/// The store has to survive the death of its process, not of the machine: the
/// nodes of a lab die with the machine anyway. What was written to the page
/// cache outlives `kill -9`, in the order in which it was written, so that
/// syncing would only make each commit milliseconds slower.
#[derive(Debug)]
struct PageCacheFile(File);

impl StorageBackend for PageCacheFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// What one commit does to one object.
pub(super) struct Put<'a> {
    pub(super) collection: &'a str,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// The new document; none removes the object.
    pub(super) document: Option<&'a [u8]>,
}

/// The open database.
pub(super) struct Disk {
    database: Database,
}

/// A row read back at start.
pub(super) struct Row {
    pub(super) collection: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) document: Vec<u8>,
}

impl Disk {
    /// Opens or makes the database; the file is readable by its owner only,
    /// since Secrets stand in it.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::Open {
            path: path.to_owned(),
            reason,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed(e.to_string()))?;
        file.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => StoreError::InUse {
                path: path.to_owned(),
            },
            std::fs::TryLockError::Error(e) => failed(e.to_string()),
        })?;
        let database = Database::builder()
            .create_with_backend(PageCacheFile(file))
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self { database })
    }

    /// Reads everything back: the last revision and all objects.
    pub(super) fn load(&self) -> Result<(u64, Vec<Row>), StoreError> {
        let read = || -> Result<(u64, Vec<Row>), redb::Error> {
            // Makes the tables of a new database.
            let write = self.database.begin_write()?;
            write.open_table(OBJECTS)?;
            write.open_table(COUNTERS)?;
            write.commit()?;
            let transaction = self.database.begin_read()?;
            let revision = transaction
                .open_table(COUNTERS)?
                .get(REVISION)?
                .map_or(0, |v| v.value());
            let mut rows = Vec::new();
            for entry in transaction.open_table(OBJECTS)?.iter()? {
                let (key, document) = entry?;
                let mut parts = key.value().split('\0');
                if let (Some(collection), Some(namespace), Some(name)) =
                    (parts.next(), parts.next(), parts.next())
                {
                    rows.push(Row {
                        collection: collection.to_owned(),
                        namespace: namespace.to_owned(),
                        name: name.to_owned(),
                        document: document.value().to_owned(),
                    });
                }
            }
            Ok((revision, rows))
        };
        read().map_err(|e| StoreError::Read(e.to_string()))
    }

    /// Writes a batch in one transaction; when this returns, it survives the
    /// death of the process.
    pub(super) fn commit(&self, revision: u64, puts: &[Put<'_>]) -> Result<(), StoreError> {
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut objects = transaction.open_table(OBJECTS)?;
                for put in puts {
                    let key = format!("{}\0{}\0{}", put.collection, put.namespace, put.name);
                    match put.document {
                        Some(document) => objects.insert(key.as_str(), document)?,
                        None => objects.remove(key.as_str())?,
                    };
                }
                transaction
                    .open_table(COUNTERS)?
                    .insert(REVISION, revision)?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|e| StoreError::Write(e.to_string()))
    }
}
