//! Reads the folder of manifests and its status overlay.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::snapshot::Objects;
use crate::status;
use crate::store::{Content, Store};

/// Largest file read. A thousand pods fit; a file beyond it is more likely a mistake.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Deepest folder read, so that a loop of links ends.
const MAX_FOLDERS_DEEP: usize = 8;

/// A folder of manifests, its status overlay, and what was accepted from it so far.
#[derive(Debug)]
pub struct Folder {
    manifests: PathBuf,
    overlay: PathBuf,
    store: Store,
    last: Option<Arc<Objects>>,
}

impl Folder {
    /// Names the folders; `overlay` is `<manifests>/.status` when absent. Reads nothing yet.
    pub fn new(manifests: &Path, overlay: Option<&Path>) -> Self {
        Self {
            manifests: manifests.to_owned(),
            overlay: overlay.map_or_else(|| manifests.join(".status"), Path::to_owned),
            store: Store::default(),
            last: None,
        }
    }

    /// Where the status overlay is.
    pub fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// Reads everything now. Returns the same allocation as last time when nothing is different.
    ///
    /// # Errors
    /// When the folder of manifests itself cannot be listed; then nothing changes.
    pub fn read(&mut self) -> io::Result<Arc<Objects>> {
        let mut manifests = BTreeMap::new();
        collect(&self.manifests, 0, &mut manifests)?;
        let mut overlay = BTreeMap::new();
        match collect(&self.overlay, MAX_FOLDERS_DEEP, &mut overlay) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut objects = self.store.load(manifests);
        status::apply(&mut objects, &overlay);
        match &self.last {
            Some(last) if **last == objects => Ok(Arc::clone(last)),
            _ => {
                let objects = Arc::new(objects);
                self.last = Some(Arc::clone(&objects));
                Ok(objects)
            }
        }
    }

    /// Every folder whose changes matter, sorted.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.overlay.clone()];
        collect_folders(&self.manifests, 0, &mut folders);
        folders.sort();
        folders.dedup();
        folders
    }
}

/// Whether a name is a manifest's. Hidden files, backups and editors' temporary files are not.
pub(crate) fn is_manifest(name: &str) -> bool {
    let hidden = name.starts_with(['.', '#']);
    !hidden
        && [".yaml", ".yml", ".json"]
            .iter()
            .any(|end| name.ends_with(end))
}

fn collect(folder: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Content>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Follows links: mounted volumes are made of them. A dangling one is a file that just left.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() && !name.starts_with('.') && depth < MAX_FOLDERS_DEEP {
            match collect(&path, depth + 1, found) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    found.insert(path, Content::Unreadable(error.to_string()));
                }
                _ => {}
            }
        } else if metadata.is_file() && is_manifest(&name) {
            match content(&path, metadata.len()) {
                Ok(content) => drop(found.insert(path, content)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => drop(found.insert(path, Content::Unreadable(error.to_string()))),
            }
        }
    }
    Ok(())
}

fn content(path: &Path, length: u64) -> io::Result<Content> {
    if length > MAX_FILE_BYTES {
        let reason = format!("{length} bytes is more than the {MAX_FILE_BYTES} allowed");
        return Ok(Content::Unreadable(reason));
    }
    match String::from_utf8(fs::read(path)?) {
        Ok(text) => Ok(Content::Text(text)),
        Err(_) => Ok(Content::Unreadable("not UTF-8".to_owned())),
    }
}

fn collect_folders(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    found.push(folder.to_owned());
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && depth < MAX_FOLDERS_DEEP && path.is_dir() {
            collect_folders(&path, depth + 1, found);
        }
    }
}

#[cfg(test)]
mod tests;
