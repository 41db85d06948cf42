//! What operators see of a running cluster: how long things take, what is slow and why, and how recovery goes on.

use std::time::Duration;

use e2e::{Command, Fleet, FleetOptions, Random, eventually, have, limited, sample};
use serde_json::Value;

use crate::daemons::metrics;

const MIB: u64 = 1 << 20;

#[test]
fn a_slow_write_tells_whose_fault_it_was_and_is_measured() {
    limited(120, || {
        if !have(&["etcd"]) {
            return;
        }
        let osd_options = ["--slow-operation-ms", "300"].map(str::to_owned).to_vec();
        let options = FleetOptions { osd_options, ..FleetOptions::default() };
        let mut fleet = Fleet::start_with_pool(options, &["--replicas", "3"], "64M");
        let mut demo = fleet.connect("demo");
        (0..16).for_each(|i| demo.write(i * MIB, &[1; 4096]).unwrap());
        let slow = |fleet: &mut Fleet| [1, 3].map(|id| fleet.daemon(&format!("osd.{id}")).log()).concat();
        assert!(!slow(&mut fleet).contains("slowest: osd 2"));
        // Again if need be: on a busy machine it may be the requests that come late.
        eventually(60, "the log says who was slow", || {
            fleet.daemon("osd.2").signal("STOP");
            (0..16).for_each(|i| demo.send(Command::Write, i * MIB, 0, &[2; 4096], false).map(drop).unwrap());
            std::thread::sleep(Duration::from_millis(800));
            fleet.daemon("osd.2").signal("CONT");
            (0..16).for_each(|_| demo.receive().unwrap().1.map(drop).unwrap());
            let log = slow(&mut fleet);
            let line = log.lines().find(|line| line.contains("slowest: osd 2"))?;
            assert!(line.contains("WARN") && line.contains("was slow") && line.contains("write of 4 KiB"), "{line}");
            Some(())
        });

        fleet.stop("osd.1");
        let ready = fleet.start_osd(1);
        fleet.wait_active(30);
        (0..16).for_each(|i| demo.write(i * MIB, &[3; 4096]).unwrap());
        let name = "blockyard_osd_process_latency_seconds";
        let count = |at: &str| sample(&metrics(&ready), &format!("{name}_count{{osd=\"1\",at=\"{at}\",op=\"write\"}}"));
        eventually(10, "latencies are counted", || (count("store") >= Some(16.0)).then_some(()));
        let text = metrics(&ready);
        let all = sample(&text, &format!("{name}_bucket{{osd=\"1\",at=\"store\",op=\"write\",le=\"+Inf\"}}"));
        assert!(all >= Some(16.0) && text.contains("le=\"0.001024\""), "{text}");
        eventually(10, "statistics have quantiles", || {
            let osds = fleet.blockyard(&["osd", "ls", "--json"]).json();
            let latencies = osds[0]["latencies"].as_array()?;
            latencies.iter().find(|l| l["at"] == "store" && l["p99-us"].as_u64() >= l["p50-us"].as_u64()).map(drop)
        });
    });
}

fn recovery(fleet: &Fleet) -> Value {
    fleet.status()["recovery"].clone()
}

#[test]
fn recovery_obeys_its_settings_while_it_runs() {
    limited(180, || {
        if !have(&["etcd"]) {
            return;
        }
        const RATE: u64 = 2 * MIB;
        let mut fleet = Fleet::start_with_pool(FleetOptions::default(), &["--replicas", "3"], "128M");
        let set = |fleet: &Fleet, value: &str| drop(fleet.blockyard(&["config", "set", "settings", value]).ok());
        assert_eq!(recovery(&fleet)["objects-degraded"], 0);
        set(&fleet, r#"{"recovery-paused":true}"#);
        fleet.kill("osd.3");
        fleet.wait_served(30);
        let data = Random::new(1).bytes(64 << 20);
        fleet.connect("demo").write_long(0, &data).unwrap();
        fleet.start_osd(3);
        let degraded = |fleet: &Fleet| recovery(fleet)["objects-degraded"].as_u64().unwrap_or_default();
        eventually(30, "objects are missing on osd 3", || (degraded(&fleet) == 64).then_some(()));
        std::thread::sleep(Duration::from_secs(3));
        let paused = recovery(&fleet);
        assert_eq!((&paused["objects-degraded"], &paused["paused"]), (&64.into(), &true.into()), "{paused}");

        set(&fleet, &format!("{{\"recovery-bytes-per-second-max\":{RATE}}}"));
        let (mut fastest, begin) = (0.0f64, std::time::Instant::now());
        eventually(60, "recovery goes on, with an end in sight", || {
            let now = recovery(&fleet);
            fastest = fastest.max(now["bytes-per-second"].as_f64().unwrap_or_default());
            (fastest > 0.0 && now["eta-seconds"].as_u64() > Some(0)).then_some(())
        });
        std::thread::sleep(Duration::from_secs(4));
        let now = recovery(&fleet);
        let left = now["objects-degraded"].as_u64().unwrap_or_default();
        let most = 3 * (RATE / MIB) * (begin.elapsed().as_secs() + 2) + 3;
        println!("{} of 64 objects in {:?}: {now}", 64 - left, begin.elapsed());
        assert!(left < 64 && 64 - left <= most, "{left} are left, at most {most} may be done: {now}");

        set(&fleet, "{}");
        fleet.wait_active(60);
        eventually(30, "nothing is left to do", || (degraded(&fleet) == 0).then_some(()));
        assert!(fleet.connect("demo").read_long(0, data.len()).unwrap() == data);
    });
}
