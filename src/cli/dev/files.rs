//! The files of a development directory and their permissions: 0700 around it, 0600 on what is secret.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use crate::cli::exit::{Failure, Result};

/// Makes the directory and its parts. Errors: it cannot be made ours alone.
pub fn directories(dir: &Path) -> Result<()> {
    for part in ["", "certs", "secrets", "softhsm", "softhsm/tokens", "files"] {
        let path = dir.join(part);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o700)))
            .map_err(|e| failed("cannot make", &path, &e))?;
    }
    Ok(())
}

/// Writes a file that only its owner reads.
pub fn private(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o600)
}

/// Writes a file that anybody may read.
pub fn public(path: &Path, bytes: &[u8]) -> Result<()> {
    write(path, bytes, 0o644)
}

/// Reads a text file.
pub fn text(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| failed("cannot read", path, &e))
}

/// Reads a file.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| failed("cannot read", path, &e))
}

/// Removes a file, if it is there.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove", path, &e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Replaces the file at once, so that nobody ever reads half of it.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    remove(&new)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&new, path))
        .map_err(|e| failed("cannot write", path, &e))
}

/// A failure that names the file.
pub fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::other(format!("{what} {}: {error}", path.display()))
}

#[cfg(test)]
pub mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A directory that goes away with the test.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("claviger-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        pub fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn secrets_are_for_their_owner_only() {
        let scratch = Scratch::new("files");
        directories(scratch.path()).unwrap();
        let path = scratch.path().join("secrets/pin");
        private(&path, b"1").unwrap();
        private(&path, b"2").unwrap();
        assert_eq!(text(&path).unwrap(), "2");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&scratch.path().join("secrets")), 0o700);
    }
}
