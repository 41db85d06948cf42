//! The command line without a cluster: help, errors, exit codes.

mod support;

use support::{blockyard, golden};

#[test]
fn help_is_as_reviewed() {
    for (file, args) in [
        ("help", &["help"][..]),
        ("help-up", &["help", "up"]),
        ("help-image", &["help", "image"]),
        ("help-image-import", &["help", "image", "import"]),
        ("help-export", &["help", "export"]),
        ("help-config-set", &["help", "config", "set"]),
        ("help-osd", &["help", "osd"]),
        ("help-osd-prepare", &["osd", "prepare", "-h"]),
        ("help-osd-run", &["osd", "run", "-h"]),
        ("help-mon", &["mon", "-h"]),
        ("help-gateway", &["gateway", "-h"]),
    ] {
        let run = blockyard(args);
        assert_eq!(run.code, 0, "{}", run.stderr);
        golden(file, &run.stdout);
    }
}

#[test]
fn every_command_has_help_with_json_and_cluster() {
    for args in [
        &["up"][..],
        &["status"],
        &["df"],
        &["init"],
        &["mon"],
        &["gateway"],
        &["pool", "ls"],
        &["pool", "create"],
        &["pool", "set-pg-count"],
        &["pool", "rm"],
        &["pg", "ls"],
        &["pg", "describe"],
        &["pg", "scrub"],
        &["pg", "repair"],
        &["osd", "ls"],
        &["osd", "prepare"],
        &["osd", "run"],
        &["osd", "rm"],
        &["osd", "reweight"],
        &["osd", "tag"],
        &["osd", "dump"],
        &["osd", "check"],
        &["image", "create"],
        &["image", "ls"],
        &["image", "info"],
        &["image", "resize"],
        &["image", "rm"],
        &["image", "import"],
        &["image", "export"],
        &["export", "ls"],
        &["export", "add"],
        &["export", "rm"],
        &["config", "ls"],
        &["config", "get"],
        &["config", "set"],
        &["config", "reset"],
    ] {
        let run = blockyard(&[args, &["--help"]].concat());
        assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
        assert!(run.stdout.contains("--json") && run.stdout.contains("--cluster"), "{args:?}");
    }
}

#[test]
fn wrong_command_lines_exit_with_2() {
    for args in [
        &["nonsense"][..],
        &["image"],
        &["image", "create", "a"],
        &["image", "create", "a", "--size", "4X"],
        &["image", "create", "/a", "--size", "4G"],
        &["pool", "create", "p", "--replicas", "17"],
        &["up", "--osds", "0"],
        &["up", "--image", "x"],
        &["up", "--ports", "some"],
        &["up", "--ec", "2+1", "--replicas", "2"],
        &["pool", "create", "p", "--ec", "2+1", "--replicas", "2"],
        &["pg", "describe", "17"],
        &["osd", "prepare", "x", "--id", "0"],
        &["osd", "run"],
        &["osd", "tag", "1"],
        &["gateway", "--nbd", "nowhere"],
        &["mon", "--lease-ttl-s", "61"],
    ] {
        let run = blockyard(args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}: {}", run.stderr);
        assert!(!run.stderr.is_empty());
    }
}

#[test]
fn erasure_codes_need_as_many_osds() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("x");
    let up =
        |more: &[&str]| blockyard(&[&["up", "--ports", "auto", "--data-dir", dir.to_str().unwrap()], more].concat());
    for bad in ["2", "0+1", "2+0", "31+2", "2+x"] {
        assert_eq!(up(&["--ec", bad]).code, 2, "{bad}");
    }
    assert!(!dir.exists());
    let few = up(&["--ec", "2+1", "--osds", "2"]);
    assert_eq!(few.code, 2);
    assert!(few.stderr.contains("3 shards need as many OSDs"), "{}", few.stderr);
}

#[test]
fn a_cluster_that_is_not_there_exits_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let run = blockyard(&["--cluster", dir, "status"]);
    assert_eq!(run.code, 3);
    assert_eq!(
        run.stderr,
        format!(
            "error: no cluster runs on {dir}: start one with 'blockyard up --data-dir {dir}', or name another one with \
             --cluster DIR or --cluster HOST:PORT of its state store\n"
        )
    );
    // Nobody listens on the discard port.
    let run = blockyard(&["--cluster", "127.0.0.1:9", "image", "ls"]);
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(run.stderr.starts_with("error: ") && run.stderr.contains("127.0.0.1:9"), "{}", run.stderr);
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("a/b");
    let run = blockyard(&["up", "--ports", "auto", "--data-dir", missing.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("the directory above it does not exist"), "{}", run.stderr);
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let run = blockyard(&["up", "--ports", "auto", "--data-dir", file.to_str().unwrap()]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("it is not a directory"), "{}", run.stderr);
}

#[test]
fn too_few_osds_are_refused_before_anything_is_made_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let dir = dir.to_str().unwrap();
    let run = blockyard(&["up", "--ports", "auto", "--data-dir", dir, "--osds", "2", "--replicas", "3"]);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("3 copies need as many OSDs"), "{}", run.stderr);
    assert!(!folder.path().join("data/osd.1").exists() && !folder.path().join("data/up.json").exists());
}

#[test]
fn what_is_no_store_is_not_dumped() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("osd.1");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(blockyard(&["osd", "dump", path]).code, 1);
    let run = blockyard(&["osd", "check", path, "--json"]);
    assert_eq!(run.code, 1);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    assert_eq!(blockyard(&["osd", "check", "/nowhere/at/all"]).code, 4);
}

#[test]
fn completions_and_man_pages_come_from_the_definitions() {
    for shell in ["bash", "zsh", "fish"] {
        let run = blockyard(&["completions", shell]);
        assert_eq!(run.code, 0);
        assert!(run.stdout.contains("import") && run.stdout.contains("blockyard"));
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(blockyard(&["man", folder.path().to_str().unwrap()]).code, 0);
    let page = std::fs::read_to_string(folder.path().join("blockyard-image-import.1")).unwrap();
    assert!(page.contains("verify"));
}
