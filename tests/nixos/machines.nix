# The scenarios of tests/scenarios on NixOS machines, and what only NixOS has.
{ self, pkgs }:

let
  inherit (self.inputs.nixpkgs) lib;

  scenarios = ../scenarios;

  # A scenario with a machine for each name in `nodes`; its settings and steps are in its folder.
  scenario =
    {
      name,
      nodes ? {
        machine = { };
      },
    }:
    let
      folder = scenarios + "/${name}";
      steps = lib.filter (lib.hasSuffix ".sh") (lib.attrNames (builtins.readDir folder));
      machineOf = step: lib.elemAt (lib.splitString "-" step) 1;
      configured = machine: builtins.pathExists (folder + "/${machine}.toml");
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
          settings = lib.importTOML (folder + "/${machine}.toml");
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
                "SCENARIOS=/etc/castore-fs-scenarios sh -eu /etc/castore-fs-scenarios/${name}/${step} 2>&1"
            )
      '') steps;
    };
in
{
  basic = scenario { name = "basic"; };

  restart = scenario { name = "restart"; };

  reload = scenario { name = "reload"; };

  hardening = scenario { name = "hardening"; };

  remote = scenario {
    name = "remote";
    nodes = {
      client = { };
      server.services.castore-fs.openFirewall = true;
    };
  };

  fstab = scenario {
    name = "fstab";
    nodes.machine.virtualisation.fileSystems."/srv/fstab" = {
      device = "local:/var/tmp/scenario/store";
      fsType = "castore-fs";
      noCheck = true;
      options = [
        "_netdev"
        "noauto"
        "nofail"
      ];
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
            systemd.services.report = {
              wantedBy = [ "multi-user.target" ];
              serviceConfig.StandardOutput = "tty";
              serviceConfig.TTYPath = "/dev/ttyS0";
              script = "echo booted from $(findmnt --noheadings --output FSTYPE --target /nix/.castore)";
              path = [ pkgs.util-linux ];
            };
          }
        ];
      };
      inherit (inner.config.system) build;
      closure = pkgs.closureInfo { rootPaths = [ build.toplevel ]; };
    in
    pkgs.testers.runNixOSTest {
      name = "castore-fs-virtiofs";
      nodes.machine = {
        imports = [ self.nixosModules.default ];
        services.castore-fs = {
          enable = true;
          virtiofs.guest = { };
        };
        environment.systemPackages = [ pkgs.qemu_test ];
        virtualisation = {
          memorySize = 4096;
          diskSize = 8192;
          cores = 2;
          additionalPaths = [ build.toplevel ];
        };
      };
      testScript = ''
        machine.wait_for_unit("castore-fs.service")
        # A store path is a root node under its base name.
        machine.succeed("xargs castore-fs import < ${closure}/store-paths")
        machine.succeed(
            "timeout 1800 qemu-kvm -nographic -no-reboot -m 1024"
            " -object memory-backend-memfd,id=mem,size=1024M,share=on -numa node,memdev=mem"
            " -chardev socket,id=store,path=/run/castore-fs-virtiofs/guest.sock"
            " -device vhost-user-fs-pci,chardev=store,tag=castore,queue-size=1024"
            " -kernel ${build.kernel}/${inner.config.system.boot.loader.kernelFile}"
            " -initrd ${build.initialRamdisk}/initrd"
            " -append 'init=${build.toplevel}/init ${toString inner.config.boot.kernelParams}'"
            " > /tmp/console 2>&1 &"
        )
        machine.wait_until_succeeds("grep 'booted from virtiofs' /tmp/console", timeout=1800)
      '';
    };
}
