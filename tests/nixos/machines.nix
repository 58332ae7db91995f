# The scenarios of tests/scenarios on NixOS machines, and what only NixOS has.
{ self, pkgs }:

let
  inherit (self.inputs.nixpkgs) lib;

  scenarios = ../scenarios;

  # A scenario with a machine for each name in `nodes`; its settings and steps are in its directory. What
  # only NixOS can show comes after them, in `testScript`.
  scenario =
    {
      name,
      nodes ? {
        machine = { };
      },
      testScript ? "",
    }:
    let
      directory = scenarios + "/${name}";
      steps = lib.filter (lib.hasSuffix ".sh") (lib.attrNames (builtins.readDir directory));
      machineOf = step: lib.elemAt (lib.splitString "-" step) 1;
      configured = machine: builtins.pathExists (directory + "/${machine}.toml");
    in
    pkgs.testers.runNixOSTest {
      name = "castore-fs-${name}";

      nodes = lib.mapAttrs (machine: more: {
        imports = [
          self.nixosModules.default
          more
        ];
        services.castore-fs = lib.mkIf (configured machine) {
          enable = true;
          settings = lib.importTOML (directory + "/${machine}.toml");
        };
        environment.etc.castore-fs-scenarios.source = scenarios;
        environment.systemPackages = [
          pkgs.attr
          pkgs.castore-fs
          pkgs.diffutils
        ];
      }) nodes;

      testScript = ''
        start_all()
      ''
      + lib.concatMapStrings (machine: ''
        ${machine}.wait_for_unit("castore-fs.service")
      '') (lib.filter configured (lib.attrNames nodes))
      + lib.concatMapStrings (step: ''
        with subtest("${name}/${step}"):
            ${machineOf step}.succeed(
                "SCENARIOS=/etc/castore-fs-scenarios SHARED=/tmp/shared"
                " sh -eu /etc/castore-fs-scenarios/${name}/${step} 2>&1"
            )
      '') steps
      + testScript;
    };

  # The same program from another path.
  upgraded = pkgs.runCommand "castore-fs-upgraded" { inherit (pkgs.castore-fs) meta; } ''
    cp -r ${pkgs.castore-fs} $out
    chmod -R u+w $out
    substituteInPlace $out/lib/systemd/system/* --replace-quiet ${pkgs.castore-fs} $out
  '';
in
{
  basic = scenario { name = "basic"; };

  restart = scenario { name = "restart"; };

  # And what a switch to another configuration makes of it: another mount is a reload, another program
  # a restart, and neither costs a reader anything.
  reload = scenario {
    name = "reload";
    nodes.machine.specialisation = {
      more-mounts.configuration.services.castore-fs.mounts.third.path = "/srv/third";
      upgraded.configuration.services.castore-fs.package = upgraded;
    };
    testScript = ''
      def mount_id():
          return machine.succeed("findmnt --noheadings --output ID --mountpoint /srv/first").strip()

      def main_pid():
          return machine.succeed("systemctl show --property=MainPID --value castore-fs.service").strip()

      def switch_to(specialisation):
          machine.succeed(f"{system}/specialisation/{specialisation}/bin/switch-to-configuration test")

      system = machine.succeed("readlink -f /run/booted-system").strip()
      # The steps have put a file into the place of the link.
      machine.succeed(f"{system}/bin/switch-to-configuration test")
      machine.succeed("systemctl reload castore-fs.service")
      machine.succeed("tail -f /srv/first/tree/large > /dev/null 2>&1 &")

      with subtest("a mount more is a reload"):
          pid, mount = main_pid(), mount_id()
          switch_to("more-mounts")
          machine.succeed("mountpoint /srv/third")
          assert main_pid() == pid, "the daemon was restarted"
          assert mount_id() == mount, "the first mount was made anew"

      with subtest("another program takes the mounts over"):
          switch_to("upgraded")
          assert main_pid() != pid, "the daemon was not restarted"
          assert mount_id() == mount, "the first mount was made anew"
          machine.fail("mountpoint /srv/third")
          machine.succeed("cat /srv/first/tree/file")
    '';
  };

  hardening = scenario { name = "hardening"; };

  remote = scenario {
    name = "remote";
    nodes = {
      client = { };
      server.services.castore-fs.openFirewall = true;
    };
  };

  # And what a switch makes of a mount: it stays with its process, whatever is new.
  fstab = scenario {
    name = "fstab";
    nodes.machine = {
      virtualisation.fileSystems."/srv/fstab" = {
        device = "local:/var/tmp/scenario/store";
        fsType = "castore-fs";
        noCheck = true;
        options = [
          "_netdev"
          "allow_other"
          "noauto"
          "nofail"
        ];
      };
      specialisation = {
        upgraded.configuration.services.castore-fs.package = upgraded;
        changed.configuration.virtualisation.fileSystems."/srv/fstab".options = [ "uid=1000" ];
      };
    };
    testScript = ''
      def server():
          return machine.succeed("pgrep --newest --full 'castore-fs.* /srv/fstab$'").strip()

      def switch_to(specialisation):
          return machine.execute(
              f"{system}/specialisation/{specialisation}/bin/switch-to-configuration test 2>&1"
          )

      system = machine.succeed("readlink -f /run/booted-system").strip()
      machine.succeed("systemctl start srv-fstab.mount")
      pid = server()

      with subtest("another version leaves the mount and its process, and is the next mount's"):
          status, said = switch_to("upgraded")
          assert status == 0, said
          assert server() == pid, "the mount has another process"
          machine.succeed("cat /srv/fstab/tree/file")
          machine.succeed("systemctl restart srv-fstab.mount")
          pid = server()
          machine.succeed(f"readlink /proc/{pid}/exe | grep upgraded")

      with subtest("another option is refused with a message, and the mount stays"):
          status, said = switch_to("changed")
          assert status != 0, said
          machine.succeed("journalctl --unit srv-fstab.mount | grep 'unmount it and mount it again'")
          assert server() == pid, "the mount has another process"
          machine.succeed("cat /srv/fstab/tree/file")
    '';
  };

  port = scenario { name = "port"; };

  # As a user without privilege.
  fusermount = scenario {
    name = "fusermount";
    nodes.machine.services.castore-fs = {
      enable = true;
      user = "castore-fs";
      mountWith = "fusermount";
      mounts.tree = {
        path = "/srv/tree";
        allowOther = false;
      };
    };
  };

  credentials = scenario {
    name = "credentials";
    nodes.machine.services.castore-fs.credentials.upstream =
      "/etc/castore-fs-scenarios/credentials/secret";
  };

  below-nix-store = scenario {
    name = "below-nix-store";
    nodes.machine = {
      # With its store on its disk, as a real machine has it.
      virtualisation.useBootLoader = true;
      virtualisation.useEFIBoot = true;
      boot.loader.systemd-boot.enable = true;
      services.castore-fs.mounts.store.overNixStore = true;
      services.castore-fs.mounts.store.path = "/run/castore-fs-lower";
    };
  };

  # Its steps use Nix on the machine's own store, and a server that they start and stop themselves.
  nix-unreachable = scenario {
    name = "nix-unreachable";
    nodes.machine = {
      virtualisation.useBootLoader = true;
      virtualisation.useEFIBoot = true;
      boot.loader.systemd-boot.enable = true;
      services.castore-fs = {
        stores.far.url = "grpc+unix:/run/castore-fs-far.sock";
        mounts.store = {
          store = "far";
          path = "/run/castore-fs-lower";
          overNixStore = true;
        };
      };
    };
  };

  # Nix knows what is below; the binary cache is started and stopped by the steps.
  nix-store = scenario {
    name = "nix-store";
    nodes.machine = {
      virtualisation.useBootLoader = true;
      virtualisation.useEFIBoot = true;
      boot.loader.systemd-boot.enable = true;
      services.castore-fs = {
        enable = true;
        nixStore = {
          enable = true;
          binaryCaches = [ "http://127.0.0.1:5007" ];
          trustedPublicKeys = [ "scenario-1:nbaxLQ6U5A8RBKw1JlgzCBJEgZ5Zt6wpl/G95HPuKOM=" ];
        };
      };
    };
  };

  # A binary cache for a fleet: one machine uploads, another one substitutes.
  binary-cache-server = scenario {
    name = "binary-cache-server";
    nodes = {
      builder = { };
      client = { };
      server.services.castore-fs.openFirewall = true;
    };
  };

  # A binary cache that Nix has written, behind a mount; the steps start and stop its server.
  binary-cache-store = scenario {
    name = "binary-cache-store";
    nodes.machine.environment.systemPackages = [ pkgs.python3 ];
  };

  # Garage as nixpkgs has it; the steps make one cluster of the three.
  object-store =
    let
      garage = lib.importTOML (scenarios + "/object-store/files/garage.toml");
      storage = {
        services.garage = {
          enable = true;
          package = pkgs.garage_2;
          settings = garage;
        };
        networking.firewall.allowedTCPPorts = [
          3900
          3901
        ];
      };
    in
    scenario {
      name = "object-store";
      nodes = {
        storage1 = storage;
        storage2 = storage;
        storage3 = storage;
        client.services.castore-fs.credentials.s3 = "/etc/castore-fs-scenarios/object-store/files/s3";
      };
    };

  # A machine in the machine, whose Nix store is all in castore-fs on the outer one.
  virtiofs =
    let
      inner = self.inputs.nixpkgs.lib.nixosSystem {
        modules = [
          self.nixosModules.guest
          {
            nixpkgs.pkgs = pkgs;
            system.stateVersion = "26.05";
            services.castore-fs.guest = {
              enable = true;
              nixStore.enable = true;
            };
            fileSystems."/" = {
              device = "tmpfs";
              fsType = "tmpfs";
            };
            boot = {
              loader.grub.enable = false;
              kernelParams = [
                "console=ttyS0"
                "panic=-1"
              ];
            };
            # Nix knows the system, and its collector deletes nothing of it.
            systemd.services.report = {
              wantedBy = [ "multi-user.target" ];
              after = [ "castore-fs-registration.service" ];
              serviceConfig.StandardOutput = "tty";
              serviceConfig.TTYPath = "/dev/ttyS0";
              script = ''
                system=$(readlink -f /run/current-system)
                nix-store --verify-path $(nix-store --query --requisites "$system")
                nix-collect-garbage
                nix-store --verify-path $(nix-store --query --requisites "$system")
                echo booted from $(findmnt --noheadings --output FSTYPE --target /nix/.castore)
              '';
              path = [
                pkgs.nix
                pkgs.util-linux
              ];
            };
          }
        ];
      };
      inherit (inner.config.system) build;
      # As the host's option has it.
      registration = pkgs.closureInfo { rootPaths = [ build.toplevel ]; };
    in
    scenario {
      name = "virtiofs";
      nodes.machine = {
        services.castore-fs.virtiofs = {
          trusted.closure = [ build.toplevel ];
          isolated.isolated = true;
        };
        environment.systemPackages = [ pkgs.qemu_test ];
        virtualisation = {
          memorySize = 4096;
          diskSize = 8192;
          cores = 2;
          additionalPaths = [
            build.toplevel
            registration
          ];
        };
      };
      testScript = ''
        # The steps have put a file into the place of the link.
        machine.succeed("/run/booted-system/bin/switch-to-configuration test")
        machine.succeed("systemctl reload castore-fs.service")
        machine.wait_for_unit("castore-fs-closure-trusted.service")
        for guest in ["trusted", "isolated"]:
            with subtest(f"a system boots from what is served, {guest}"):
                machine.succeed(
                    "timeout 1800 qemu-kvm -nographic -no-reboot -m 1024"
                    " -object memory-backend-memfd,id=mem,size=1024M,share=on -numa node,memdev=mem"
                    f" -chardev socket,id=store,path=/run/castore-fs-virtiofs/{guest}/socket"
                    " -device vhost-user-fs-pci,chardev=store,tag=castore,queue-size=1024"
                    " -kernel ${build.kernel}/${inner.config.system.boot.loader.kernelFile}"
                    " -initrd ${build.initialRamdisk}/initrd"
                    " -append 'init=${build.toplevel}/init regInfo=${registration}/registration ${toString inner.config.boot.kernelParams}'"
                    f" > /tmp/console-{guest} 2>&1 &"
                )
                machine.wait_until_succeeds(
                    f"grep 'booted from virtiofs' /tmp/console-{guest}", timeout=1800
                )
                machine.succeed("pkill qemu")
      '';
    };
}
