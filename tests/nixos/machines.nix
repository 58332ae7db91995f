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
    nodes.machine = {
      services.castore-fs.credentials.upstream = "/var/lib/secrets/upstream";
      systemd.tmpfiles.settings.secrets."/var/lib/secrets/upstream".f = {
        mode = "0600";
        argument = "not-for-everybody";
      };
    };
  };

  below-nix-store = scenario {
    name = "below-nix-store";
    nodes.machine = {
      # With its store on its disk, as a real machine has it.
      virtualisation.useBootLoader = true;
      services.castore-fs.mounts.store.overNixStore = true;
      services.castore-fs.mounts.store.path = "/run/castore-fs-lower";
    };
  };
}
