//! Compiles fio's side of the engine, if fio's headers are here; says how to get them if not.

use std::path::{Path, PathBuf};
use std::process::Command;

const SHIM: &str = "src/ioengine.c";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(fio_headers)");
    println!("cargo::rerun-if-env-changed=FIO_SOURCE");
    // Threads of ours may outlive the moment at which fio lets go of the library.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    let source = source();
    for file in [SHIM.into(), "src/blockyard.h".into(), source.join("config-host.h")] {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    if !source.join("config-host.h").exists() {
        println!(
            "cargo::warning=libfio_blockyard.so is built without its entry points, because fio's headers are not in \
             {}: run fio/headers and build again",
            source.display()
        );
        return;
    }
    let version = version(&source);
    warn_of_another(&version);
    compile(&source, &version);
    println!("cargo::rustc-cfg=fio_headers");
}

/// Where fio's source is: FIO_SOURCE, or what `fio/headers` put into the target directory.
fn source() -> PathBuf {
    if let Some(path) = std::env::var_os("FIO_SOURCE") {
        return path.into();
    }
    // target/[TRIPLE/]PROFILE/build/NAME/out
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let found = out.ancestors().skip(4).take(2).map(|folder| folder.join("fio")).find(|fio| fio.is_dir());
    found.unwrap_or_else(|| out.ancestors().nth(4).unwrap_or(&out).join("fio"))
}

/// What the source calls itself, like `fio-3.33`.
fn version(source: &Path) -> String {
    let file = source.join("FIO-VERSION-FILE");
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let Some(version) = text.trim().strip_prefix("FIO_VERSION = ") else {
        panic!("{} does not tell the version of fio: remove {} and run fio/headers", file.display(), source.display());
    };
    version.to_owned()
}

fn warn_of_another(version: &str) {
    let Ok(output) = Command::new("fio").arg("--version").output() else { return };
    let installed = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && installed != version {
        println!(
            "cargo::warning=the engine is built for {version} and will refuse {installed}, which is installed: run \
             fio/headers and build again"
        );
    }
}

fn compile(source: &Path, version: &str) {
    let quoted = format!("\"{version}\"");
    cc::Build::new()
        .file(SHIM)
        .flag("-isystem")
        .flag(source)
        .flag("-include")
        .flag(source.join("config-host.h"))
        .define("_GNU_SOURCE", None)
        .define("FIO_VERSION", quoted.as_str())
        .std("gnu99")
        .warnings(true)
        .extra_warnings(false)
        .compile("blockyard_ioengine");
}
