//! fio with Blockyard's own engine.

use std::path::{Path, PathBuf};

use crate::{Done, have, run, skip, workspace};

/// fio's native engine, where it was built with fio's headers.
#[derive(Clone, Debug)]
pub struct Engine {
    library: PathBuf,
    /// Where fio leaves its files.
    folder: PathBuf,
}

impl Engine {
    /// Finds the engine; fio will leave its files in `folder`. `None`, loudly, if fio or the engine is missing, which is a failure
    /// if `CI=true`.
    ///
    /// # Panics
    /// If one is missing and `CI=true`.
    #[must_use]
    pub fn find(folder: &Path) -> Option<Self> {
        if !have(&["fio"]) {
            return None;
        }
        let named = std::env::var_os("FIO_ENGINE").map(PathBuf::from);
        let library = named.unwrap_or_else(|| workspace().join("target/release/libfio_blockyard.so"));
        let library = library.canonicalize().unwrap_or(library);
        let help = run("fio", [format!("--enghelp={}", library.display())]);
        if help.status == 0 && help.stdout.contains("blockyard_image") {
            return Some(Self { library, folder: folder.to_owned() });
        }
        let why = format!(
            "fio cannot load {}: run fio/headers and build it, or name another in FIO_ENGINE ('./test' does)\n{}{}",
            library.display(),
            help.stdout,
            help.stderr
        );
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}");
        skip(&why);
        None
    }

    /// The library.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Arguments of a fio that uses the engine on a cluster: endpoints of its state store, or its data directory.
    pub fn arguments(&self, cluster: &str, options: &[&str]) -> Vec<String> {
        let mut arguments = vec![
            format!("--ioengine=external:{}", self.library.display()),
            format!("--blockyard_etcd={cluster}"),
            format!("--aux-path={}", self.folder.display()),
        ];
        arguments.extend(options.iter().map(|option| (*option).to_owned()));
        arguments
    }

    /// Runs fio to its end.
    #[track_caller]
    pub fn run(&self, cluster: &str, options: &[&str]) -> Done {
        run("fio", self.arguments(cluster, options))
    }

    /// Runs fio to its end on an image, verifying everything that it writes.
    ///
    /// # Panics
    /// With all that it said, if anything was not as it should be.
    #[track_caller]
    pub fn verify(&self, cluster: &str, image: &str, options: &[&str]) -> Done {
        let image = format!("--blockyard_image={image}");
        let done =
            self.run(cluster, &[&[image.as_str(), "--verify=crc32c", "--verify_fatal=1"], options].concat()).ok();
        assert!(done.stdout.contains("err= 0"), "{}\n{}", done.stdout, done.stderr);
        println!("{}", done.stdout.lines().filter(|line| line.contains("IOPS")).collect::<Vec<_>>().join("\n"));
        done
    }
}
